"""The shapes of the world as signed distance fields: (x, y) in units of the radius -> distance, negative inside."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]


def circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.88


def square(x: Tensor, y: Tensor) -> Tensor:
    return _box(x, y, 0.74, 0.74)


def triangle(x: Tensor, y: Tensor) -> Tensor:
    """Equilateral: the largest of the distances to the lines through its sides."""
    return _polygon(x, y, 3, 0.52)


def star(x: Tensor, y: Tensor) -> Tensor:
    """Five rays: a pentagram's ray is a wedge between two lines, folded into one sector of a tenth turn."""
    sector = 2 * math.pi / 5
    angle = torch.atan2(y, x)
    folded = (angle - sector * torch.round(angle / sector)).abs()
    radius = torch.hypot(x, y)
    px, py = radius * folded.cos(), radius * folded.sin()
    tip, notch = (1.05, 0.0), (0.48 * math.cos(sector / 2), 0.48 * math.sin(sector / 2))
    ex, ey = notch[0] - tip[0], notch[1] - tip[1]
    along = (((px - tip[0]) * ex + (py - tip[1]) * ey) / (ex * ex + ey * ey)).clamp(0, 1)
    away = torch.hypot(px - tip[0] - along * ex, py - tip[1] - along * ey)
    outside = ex * (py - tip[1]) - ey * (px - tip[0]) < 0
    return torch.where(outside, away, -away)


def cross(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x, y, 0.95, 0.30), _box(x, y, 0.30, 0.95))


def ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.68).abs() - 0.24


SHAPES: dict[str, Distance] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "cross": cross,
    "ring": ring,
}


def _box(x: Tensor, y: Tensor, half_width: float, half_height: float) -> Tensor:
    dx, dy = x.abs() - half_width, y.abs() - half_height
    return torch.hypot(dx.clamp(min=0), dy.clamp(min=0)) + torch.maximum(dx, dy).clamp(max=0)


def _polygon(x: Tensor, y: Tensor, sides: int, apothem: float) -> Tensor:
    angles = [2 * math.pi * side / sides + math.pi / 2 for side in range(sides)]
    return torch.stack([math.cos(angle) * x + math.sin(angle) * y for angle in angles]).amax(0) - apothem
