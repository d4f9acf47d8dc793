"""Plots as inline SVG, whose colours are the page's, so they follow its light and dark.

The rule: a line is told by its marker and dashes as well as by its colour, and every value can be read as text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 12, 12, 40
_DODGE = 5
"""Pixels between the whiskers of neighbouring lines at one place."""
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 4", "10 4")
_TICKS = 5
_LABEL_WIDTH, _LABEL_HEIGHT = 30, 13
"""Pixels that the label of a tick takes."""


@dataclass(frozen=True)
class Point:
    """A value at x, with its interval where there is one. label: what it is, in words."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""


@dataclass(frozen=True)
class Line:
    """Points of one name, joined in the order of x; `joined` off leaves them as dots."""

    name: str
    points: tuple[Point, ...]
    joined: bool = True


def number(value: float) -> str:
    """Three significant digits, or the whole number where it has more, as text."""
    return f"{value:.0f}" if 100 <= abs(value) < 1e6 else f"{value:.3g}"


def plot(lines: Sequence[Line], *, x: str, y: str, logarithmic: bool = False) -> str:
    """Lines with whiskers over one axis, as an `<svg>`.

    x, y: what the axes show. logarithmic: x in powers of two, for steps. Points that are not finite are left out.
    """
    lines = [Line(line.name, tuple(filter(_is_finite, line.points)), line.joined) for line in lines]
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    places = sorted({point.x for point in points})
    across = _scale([*places], (_LEFT + 16, WIDTH - _RIGHT - 16), math.log2 if logarithmic else float)
    values = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    ticks = _round_ticks(min(values), max(values))
    up = _scale([ticks[0], ticks[-1]], (HEIGHT - _BOTTOM, _TOP), float)
    parts = [*_axes(x, y, places, across, ticks, up)]
    for index, line in enumerate(lines):
        shift = (index - (len(lines) - 1) / 2) * _DODGE if line.joined else 0.0
        parts += _drawn(line, index, lambda point, by=shift: across(point.x) + by, up)  # type: ignore[misc]
    names = "; ".join(line.name for line in lines)
    return _svg(f"{y} over {x}: {names}", WIDTH, HEIGHT, parts)


def swatch(index: int) -> str:
    """The sample of a line for a legend."""
    return _svg("", 34, 12, [_path([(1, 6), (33, 6)], index), _marker(17, 6, index, "")])


def surface(points: Sequence[Point], *, x: str, y: str, across: Sequence[float], best: int) -> str:
    """A map of numbers over two axes: point i lies at (across[i], points[i].x), its shade and text are points[i].y.

    best: the index that is ringed.
    """
    horizontal = _scale([*across], (_LEFT + 24, WIDTH - _RIGHT - 24), float)
    vertical = _scale([point.x for point in points], (HEIGHT - _BOTTOM - 14, _TOP + 14), float)
    values = [point.y for point in points]
    span = (max(values) - min(values)) or 1.0
    parts = [*_axes(x, y, sorted(set(across)), horizontal, sorted({point.x for point in points}), vertical)]
    for index, (place, point) in enumerate(zip(across, points, strict=True)):
        shade = 0.15 + 0.85 * (point.y - min(values)) / span
        ring = ' class="best"' if index == best else ""
        parts.append(
            f'<g{ring}><circle cx="{horizontal(place):.1f}" cy="{vertical(point.x):.1f}" r="7" class="dot" '
            f'fill-opacity="{shade:.2f}"><title>{escape(point.label)}</title></circle></g>'
        )
    return _svg(f"the score over {x} and {y}; the best is ringed", WIDTH, HEIGHT, parts)


def _is_finite(point: Point) -> bool:
    return all(value is None or math.isfinite(value) for value in (point.x, point.y, point.low, point.high))


def _scale(
    values: Sequence[float], onto: tuple[float, float], transform: Callable[[float], float]
) -> Callable[[float], float]:
    """Where a value lies in pixels; a single value lies in the middle."""
    low, high = transform(min(values)), transform(max(values))
    if low == high:
        return lambda value: sum(onto) / 2
    return lambda value: onto[0] + (transform(value) - low) / (high - low) * (onto[1] - onto[0])


def _round_ticks(low: float, high: float) -> list[float]:
    """Round numbers that enclose both, 1, 2 or 5 times a power of ten apart."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(low) / 10 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _thinned(places: Sequence[float], at: Callable[[float], float], room: float) -> list[float]:
    """Those whose labels do not touch: `room` pixels apart, the last one among them."""
    kept: list[float] = []
    for place in reversed(places):
        if not kept or abs(at(kept[-1]) - at(place)) >= room:
            kept.append(place)
    return kept


def _axes(
    x: str,
    y: str,
    places: Sequence[float],
    across: Callable[[float], float],
    ticks: Sequence[float],
    up: Callable[[float], float],
) -> list[str]:
    floor = HEIGHT - _BOTTOM
    parts = []
    for tick in _thinned(ticks, up, _LABEL_HEIGHT):
        height = f"{up(tick):.1f}"
        parts.append(f'<path class="rule" d="M{_LEFT} {height}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{height}" dy=".35em" text-anchor="end">{_tick(tick)}</text>')
    for place in _thinned(places, across, _LABEL_WIDTH):
        parts.append(f'<text x="{across(place):.1f}" y="{floor + 16}" text-anchor="middle">{_tick(place)}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {floor}H{WIDTH - _RIGHT}"/>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 5}" text-anchor="middle" class="name">{escape(x)}</text>')
    turned = f'transform="translate(11 {floor / 2:.1f}) rotate(-90)"'
    return [*parts, f'<text {turned} text-anchor="middle" class="name">{escape(y)}</text>']


def _tick(value: float) -> str:
    return f"{value:.4g}" if value else "0"


def _drawn(line: Line, index: int, at: Callable[[Point], float], up: Callable[[float], float]) -> list[str]:
    points = sorted(line.points, key=lambda point: point.x)
    parts = []
    if line.joined and len(points) > 1:
        parts.append(_path([(at(point), up(point.y)) for point in points], index))
    for point in points:
        if point.low is not None and point.high is not None:
            ends = f"M{at(point):.1f} {up(point.low):.1f}V{up(point.high):.1f}"
            parts.append(f'<path class="line c{index % len(_DASHES)}" d="{ends}"/>')
        parts.append(_marker(at(point), up(point.y), index, point.label or f"{line.name}: {number(point.y)}"))
    return parts


def _path(places: Sequence[tuple[float, float]], index: int) -> str:
    way = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    dashes = f' stroke-dasharray="{_DASHES[index % len(_DASHES)]}"' if index % len(_DASHES) else ""
    return f'<path class="line c{index % len(_DASHES)}" d="M{way}"{dashes}/>'


def _marker(x: float, y: float, index: int, label: str) -> str:
    """Circle, square, triangle, diamond, upturned triangle or cross, with the label as its tooltip."""
    shape = (
        "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
        "m-3.5 -3.5h7v7h-7z",
        "m0 -4.5l4.5 8h-9z",
        "m0 -5l5 5l-5 5l-5 -5z",
        "m0 4.5l4.5 -8h-9z",
        "m-4 -1.5h2.5v-2.5h3v2.5h2.5v3h-2.5v2.5h-3v-2.5h-2.5z",
    )[index % len(_DASHES)]
    title = f"<title>{escape(label)}</title>" if label else ""
    return f'<path class="mark c{index % len(_DASHES)}" d="M{x:.1f} {y:.1f}{shape}">{title}</path>'


def _svg(label: str, width: int, height: int, parts: Sequence[str]) -> str:
    role = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    return f'<svg viewBox="0 0 {width} {height}" {role}>{"".join(parts)}</svg>'
