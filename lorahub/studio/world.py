"""Pictures that need no download: one shape in one colour on one ground, drawn by formulas.

The rule: a picture is a pure function of its scene, its style and its palette, and a scene of its seed. A shape is a
signed distance field in pixels, negative inside; where a style puts ink is decided from that field alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from lorahub.errors import UsageError
from lorahub.studio import styles
from lorahub.studio.shapes import SHAPES

SIZE = 32
"""Side of a picture in pixels."""
TURN = 0.3
"""Largest turn of a shape in radians, either way: a small network learns upright shapes several times sooner."""
COLOURS = ("red", "yellow", "green", "blue", "white", "violet")
GROUNDS = ("teal", "grey", "navy", "sand")


@dataclass(frozen=True)
class Palette:
    """What the words for colours mean, as RGB in [0, 1]."""

    inks: tuple[tuple[float, float, float], ...]
    grounds: tuple[tuple[float, float, float], ...]


PALETTE = Palette(
    (
        (0.90, 0.12, 0.12),
        (0.98, 0.85, 0.15),
        (0.30, 0.85, 0.25),
        (0.20, 0.40, 0.98),
        (0.97, 0.97, 0.97),
        (0.75, 0.25, 0.85),
    ),
    ((0.00, 0.42, 0.42), (0.45, 0.45, 0.45), (0.08, 0.09, 0.30), (0.80, 0.70, 0.50)),
)
SHIFTED = Palette(
    (
        (0.98, 0.45, 0.60),
        (1.00, 0.62, 0.10),
        (0.65, 0.95, 0.60),
        (0.35, 0.80, 0.95),
        (0.85, 0.85, 0.70),
        (0.45, 0.20, 0.65),
    ),
    ((0.10, 0.28, 0.20), (0.25, 0.22, 0.22), (0.22, 0.08, 0.25), (0.62, 0.42, 0.30)),
)
"""Another world of colours under the same words, for fine-tuned variants of the base."""


@dataclass(frozen=True)
class Scenes:
    """What a batch of N pictures shows: indices of the words, and where, how large (pixels) and how turned (radians)."""

    shape: Tensor
    colour: Tensor
    ground: Tensor
    x: Tensor
    y: Tensor
    radius: Tensor
    turn: Tensor

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, chosen: slice | Tensor) -> Self:
        return replace(self, **{name: value[chosen] for name, value in vars(self).items()})

    @property
    def prompts(self) -> list[str]:
        """Such as "red star on teal"."""
        words = zip(self.colour.tolist(), self.shape.tolist(), self.ground.tolist(), strict=True)
        return [prompt(list(SHAPES)[shape], COLOURS[colour], GROUNDS[ground]) for colour, shape, ground in words]


def prompt(shape: str, colour: str, ground: str) -> str:
    return f"{colour} {shape} on {ground}"


def parse(text: str) -> tuple[int, int, int]:
    """The indices of shape, colour and ground in a prompt; UsageError unless it reads "COLOUR SHAPE on GROUND"."""
    words = text.lower().split()
    lists: tuple[Sequence[str], ...] = (COLOURS, tuple(SHAPES), ("on",), GROUNDS)
    if len(words) != len(lists) or any(word not in known for word, known in zip(words, lists, strict=True)):
        raise UsageError(
            f"expected a prompt such as 'red star on teal', got {text!r}: colours {', '.join(COLOURS)}; "
            f"shapes {', '.join(SHAPES)}; grounds {', '.join(GROUNDS)}"
        )
    return tuple(SHAPES).index(words[1]), COLOURS.index(words[0]), GROUNDS.index(words[3])


def scenes(count: int, seed: int, turn: float = TURN) -> Scenes:
    """`count` scenes, every word equally likely, wholly inside the picture, turned by up to `turn` radians; float32."""
    generator = torch.Generator().manual_seed(seed)

    def word(words: Sequence[str]) -> Tensor:
        return torch.randint(len(words), (count,), generator=generator)

    def between(low: float | Tensor, high: float | Tensor) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    radius = between(8.0, 11.0)
    free = SIZE / 2 - 2 - radius
    return Scenes(
        shape=word(tuple(SHAPES)),
        colour=word(COLOURS),
        ground=word(GROUNDS),
        x=SIZE / 2 + between(-free, free),
        y=SIZE / 2 + between(-free, free),
        radius=radius,
        turn=between(-turn, turn),
    )


def draw(batch: Scenes, style: str = styles.PLAIN, palette: Palette = PALETTE) -> Tensor:
    """The pictures of the scenes: N x 3 x 32 x 32, float32 in [-1, 1]."""
    return paint(batch, style, torch.tensor(palette.inks)[batch.colour], torch.tensor(palette.grounds)[batch.ground])


def paint(batch: Scenes, style: str, inks: Tensor, grounds: Tensor) -> Tensor:
    """As `draw`, with the colours given: N x 3 in [0, 1] each."""
    draw_style = styles.named(style)
    axis = torch.arange(SIZE) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")

    def field(right: float, down: float) -> Tensor:
        """Signed distances of the pixels to the shapes, moved by so many pixels: N x 32 x 32."""
        px = x - right - batch.x[:, None, None]
        py = y - down - batch.y[:, None, None]
        cos, sin = batch.turn.cos()[:, None, None], batch.turn.sin()[:, None, None]
        radius = batch.radius[:, None, None]
        px, py = (cos * px + sin * py) / radius, (cos * py - sin * px) / radius
        distances = torch.empty_like(px)
        for index, distance in enumerate(SHAPES.values()):
            chosen = batch.shape == index
            distances[chosen] = distance(px[chosen], py[chosen])
        return distances * radius

    picture = draw_style(styles.Canvas(field, x, y, inks[:, :, None, None], grounds[:, :, None, None]))
    return picture.clamp(0, 1) * 2 - 1
