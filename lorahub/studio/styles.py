"""Ways to draw a shape that differ in form: what a style adapter has to teach, and what no prompt says.

The rule: a style places ink by the distance field and the pixel grid alone, so colours stay those of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lorahub.errors import NotFoundError


@dataclass(frozen=True)
class Canvas:
    """What a style draws with."""

    field: Callable[[float, float], Tensor]
    """(pixels right, pixels down) -> signed distances to the shapes so moved, N x H x W."""
    x: Tensor
    """Horizontal places of the pixels, H x W."""
    y: Tensor
    ink: Tensor
    """Colours of the shapes, N x 3 x 1 x 1 in [0, 1]."""
    ground: Tensor


Style = Callable[[Canvas], Tensor]


def plain(canvas: Canvas) -> Tensor:
    return _over(canvas.ground, canvas.ink, _cover(canvas.field(0, 0)))


def outline(canvas: Canvas) -> Tensor:
    """The contour alone, two pixels wide."""
    return _over(canvas.ground, canvas.ink, _cover(canvas.field(0, 0).abs() - 1.1))


def shadow(canvas: Canvas) -> Tensor:
    """A dark copy falls to the lower right."""
    shaded = _over(canvas.ground, 0.25 * canvas.ground, _cover(canvas.field(2.5, 2.5)))
    return _over(shaded, canvas.ink, _cover(canvas.field(0, 0)))


def stripes(canvas: Canvas) -> Tensor:
    """The shape in horizontal bars, five pixels apart."""
    bars = ((canvas.y + 1.0) % 5.0 - 2.5).abs() - 1.45
    return _over(canvas.ground, canvas.ink, torch.minimum(_cover(canvas.field(0, 0)), _cover(bars)))


def halftone(canvas: Canvas) -> Tensor:
    """The shape in round dots on a square grid, five pixels apart."""
    dots = torch.hypot(canvas.x % 5.0 - 2.5, canvas.y % 5.0 - 2.5) - 1.9
    return _over(canvas.ground, canvas.ink, torch.minimum(_cover(canvas.field(0, 0)), _cover(dots)))


def echo(canvas: Canvas) -> Tensor:
    """A thin line follows the shape at a distance of three pixels."""
    distance = canvas.field(0, 0)
    return _over(canvas.ground, canvas.ink, torch.maximum(_cover(distance + 0.5), _cover((distance - 2.5).abs() - 0.7)))


PLAIN = "plain"
STYLES: dict[str, Style] = {
    "outline": outline,
    "shadow": shadow,
    "stripes": stripes,
    "halftone": halftone,
    "echo": echo,
}


def named(name: str) -> Style:
    """Raises NotFoundError for a style that does not exist."""
    known = {PLAIN: plain} | STYLES
    if name not in known:
        raise NotFoundError(f"there is no style {name!r}: choose {', '.join(known)}")
    return known[name]


def _cover(distance: Tensor) -> Tensor:
    """The share of each pixel that lies inside, one pixel of slope at the edge."""
    return (0.5 - distance).clamp(0, 1)


def _over(below: Tensor, above: Tensor, coverage: Tensor) -> Tensor:
    return below + (above - below) * coverage.unsqueeze(-3)
