"""The pictures of a report as the page shows them: strips to compare, sliders to choose by, plots of the scores.

The rule: pictures travel inside the page. Small ones are kept to the bit, others are reduced, and the page says so.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from lorahub.errors import NotFoundError
from lorahub.validate.cells import COMBINATION, Cell, Generation, Picture
from lorahub.validate.page_scores import (
    ROWS,
    Plots,
    interval,
    is_reference,
    over_steps,
    over_weights,
    plain,
    table,
    weight_of,
)
from lorahub.validate.plots import number

SMALL = 128
"""Longest side, in pixels, of pictures that are kept as they are and drawn with their pixels seen."""
SHOWN = 448
"""Longest side of all others in the page."""
_QUALITY = 86


@dataclass(frozen=True)
class Shot:
    """One `<img>`; width and height in pixels of what the page holds."""

    source: str
    width: int
    height: int
    small: bool
    alt: str


@dataclass(frozen=True)
class Square:
    """The pictures of one cell, a list for each prompt. steps, weight: at which slider values it is seen; "" is all."""

    steps: str
    weight: str
    shots: tuple[tuple[Shot, ...], ...]
    caption: str
    scores: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Strip:
    """Squares of which the sliders show one."""

    title: str
    squares: tuple[Square, ...]


@dataclass(frozen=True)
class Slider:
    """A choice among values in order; start: the index it begins at."""

    id: str
    label: str
    values: tuple[str, ...]
    start: int


@dataclass(frozen=True)
class Figure:
    """All that the page shows of a generation. table: its first row is its head. reasons: of scores not to be had."""

    about: str
    prompts: tuple[str, ...]
    sliders: tuple[Slider, ...]
    strips: tuple[Strip, ...]
    plots: tuple[Plots, ...]
    table: tuple[tuple[str, ...], ...]
    reasons: tuple[str, ...]


def draw_figure(made: Generation) -> Figure:
    """Raises NotFoundError for a picture that is no longer on the disk."""
    weights = _weights(made)
    return Figure(
        about=_about(made),
        prompts=made.plan.prompts,
        sliders=_sliders(made, weights),
        strips=_strips(made, weights),
        plots=tuple(group for group in (over_steps(made), over_weights(made)) if group.figures),
        table=table(made),
        reasons=tuple(dict.fromkeys(f"{score.name}: {score.reason}" for score in made.scores if score.value is None)),
    )


def _about(made: Generation) -> str:
    sides = {size for picture in made.pictures[:1] for size in _open(picture).size}
    reduced = f" They are reduced to {SHOWN} pixels here." if sides and max(sides) > SHOWN else ""
    seeds = ", ".join(map(str, made.plan.seeds))
    return (
        f"{len(made.pictures)} pictures by {made.pipeline} on {made.base}; in every square the same noise, from seeds "
        f"{seeds}.{reduced}"
    )


def _weights(made: Generation) -> tuple[float, ...]:
    """The values that the swept coefficient takes, in order; none without a sweep."""
    if made.plan.sweep is None:
        return ()
    found = {weight_of(made, cell) for cell in made.cells if cell.row == COMBINATION}
    return tuple(sorted(value for value in found if value is not None))


def _sliders(made: Generation, weights: Sequence[float]) -> tuple[Slider, ...]:
    steps = sorted(made.plan.steps)
    sliders = [Slider("steps", "Steps", tuple(map(str, steps)), steps.index(4) if 4 in steps else len(steps) - 1)]
    if made.plan.sweep is not None and weights:
        own = next(weight_of(made, cell) for cell in made.cells if weight_of(made, cell) is not None)
        sliders.append(
            Slider("lambda", f"λ of {made.plan.sweep.term}", tuple(map(plain, weights)), weights.index(own or 0.0))
        )
    return tuple(slider for slider in sliders if len(slider.values) > 1)


def _strips(made: Generation, weights: Sequence[float]) -> tuple[Strip, ...]:
    """The combination first, then what it is compared with: the many-step reference, the style, the base."""
    lines: dict[tuple[bool, str, str], list[Cell]] = {}
    for cell in made.cells:
        lines.setdefault((is_reference(made, cell), cell.row, cell.sampler), []).append(cell)

    def rank(line: tuple[bool, str, str]) -> tuple[int, bool]:
        return (ROWS.index(line[1]), not line[0])

    strips = []
    for line in sorted(lines, key=rank):
        many, row, sampler = line
        title = f"{row.capitalize()}, {sampler}"
        if many:
            title += f", {made.plan.reference_steps} steps"
        strips.append(Strip(title, tuple(_square(made, cell) for cell in lines[line])))
    return tuple(strips)


def _square(made: Generation, cell: Cell) -> Square:
    weight = weight_of(made, cell)
    pictures = made.of(cell)
    return Square(
        steps="" if is_reference(made, cell) or len(made.plan.steps) == 1 else str(cell.steps),
        weight="" if weight is None else plain(weight),
        shots=tuple(
            tuple(_shot(picture) for picture in pictures if picture.prompt == prompt) for prompt in made.plan.prompts
        ),
        caption=_caption(cell, pictures),
        scores=tuple(
            (score.name, interval(score)) for score in made.scores if score.cell == cell and score.value is not None
        ),
    )


def _caption(cell: Cell, pictures: Sequence[Picture]) -> str:
    seconds = sum(picture.seconds for picture in pictures) / max(len(pictures), 1)
    parts = [f"{cell.steps} step{'s' if cell.steps > 1 else ''}", f"guidance {plain(cell.guidance)}"]
    parts += [f"{plain(weight)}*{name}" for name, weight in cell.coefficients]
    return ", ".join([*parts, f"{number(seconds)} s a picture"])


def _shot(picture: Picture) -> Shot:
    image = _open(picture)
    small = max(image.size) <= SMALL
    image.thumbnail((SHOWN, SHOWN))
    buffer = io.BytesIO()
    if small:
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "WEBP", quality=_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    cell = picture.cell
    return Shot(
        f"data:image/{'png' if small else 'webp'};base64,{data}",
        *image.size,
        small,
        f"{cell.row}, {cell.sampler}, {cell.steps} steps, seed {picture.seed}: {picture.prompt}",
    )


def _open(picture: Picture) -> Image.Image:
    try:
        with Image.open(picture.path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise NotFoundError(
            f"{picture.path}: this picture is gone, so the page cannot show it: draw it again"
        ) from None
