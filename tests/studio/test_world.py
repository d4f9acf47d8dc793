"""The drawn world: the same pictures for the same seed, shapes where geometry puts them, styles that differ in form."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lorahub.errors import NotFoundError, UsageError
from lorahub.studio import styles, world
from lorahub.studio.shapes import SHAPES

STYLES = tuple(styles.STYLES)


def of_shape(shape: str, count: int = 24) -> world.Scenes:
    scenes = world.scenes(count, 5)
    return replace(scenes, shape=torch.full_like(scenes.shape, list(SHAPES).index(shape)))


def ink(pictures: Tensor, scenes: world.Scenes) -> Tensor:
    """How much of each pixel is ink rather than ground, by projecting its colour on the line between the two."""
    inks = torch.tensor(world.PALETTE.inks)[scenes.colour] * 2 - 1
    grounds = torch.tensor(world.PALETTE.grounds)[scenes.ground] * 2 - 1
    line = (inks - grounds)[:, :, None, None]
    return ((pictures - grounds[:, :, None, None]) * line).sum(1) / line.square().sum(1)


def test_a_seed_is_a_picture() -> None:
    first, again, other = (world.draw(world.scenes(20, seed), "halftone") for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert first.shape == (20, 3, 32, 32)
    assert first.dtype == torch.float32
    assert -1 <= float(first.min()) <= float(first.max()) <= 1


def test_drawing_does_not_touch_the_random_state() -> None:
    before = torch.get_rng_state()
    world.draw(world.scenes(4, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_word_occurs_and_prompts_tell_the_scene() -> None:
    scenes = world.scenes(2000, 0)
    for name, count in (("shape", 6), ("colour", 6), ("ground", 4)):
        shares = torch.bincount(getattr(scenes, name), minlength=count) / len(scenes)
        assert float((shares - 1 / count).abs().max()) < 0.05
    for index, prompt in enumerate(scenes.prompts[:50]):
        assert world.parse(prompt) == (scenes.shape[index], scenes.colour[index], scenes.ground[index])


@pytest.mark.parametrize("text", ["", "red star", "star red on teal", "red star in teal", "red star on teal please"])
def test_other_prompts_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a prompt such as 'red star on teal'"):
        world.parse(text)


def test_a_shape_lies_wholly_inside() -> None:
    scenes = world.scenes(500, 2)
    coverage = ink(world.draw(scenes), scenes)
    border = torch.cat([coverage[:, 0], coverage[:, -1], coverage[:, :, 0], coverage[:, :, -1]], 1)
    assert float(border.max()) < 1e-4
    assert float(coverage.amax((1, 2)).min()) > 0.9


def polygon_area(corners: list[tuple[float, float]]) -> float:
    return abs(sum(x * v - u * y for (x, y), (u, v) in zip(corners, corners[1:] + corners[:1], strict=True))) / 2


def regular(corners: int, *radii: float) -> list[tuple[float, float]]:
    angles = [2 * math.pi * corner / corners for corner in range(corners)]
    return [
        (radii[i % len(radii)] * math.cos(angle), radii[i % len(radii)] * math.sin(angle))
        for i, angle in enumerate(angles)
    ]


AREAS = {
    "circle": math.pi * 0.88**2,
    "square": 1.48**2,
    "triangle": polygon_area(regular(3, 1.04)),
    "star": polygon_area(regular(10, 1.05, 0.48)),
    "cross": 2 * 1.9 * 0.6 - 0.6**2,
    "ring": math.pi * (0.92**2 - 0.44**2),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_cover_the_area_that_geometry_says(shape: str) -> None:
    """In units of the radius, whatever the place and the turn; one pixel of slope costs little."""
    scenes = of_shape(shape)
    areas = ink(world.draw(scenes), scenes).sum((1, 2)) / scenes.radius**2
    assert float((areas / AREAS[shape] - 1).abs().max()) < 0.06


@pytest.mark.parametrize("style", STYLES)
def test_a_style_changes_form(style: str) -> None:
    """Not the same picture in other colours: its ink (or its shadow) lies elsewhere, and has more edges."""
    scenes = world.scenes(64, 8)
    plain, styled = world.draw(scenes), world.draw(scenes, style)
    assert float((plain - styled).abs().amax(1).gt(0.3).float().mean()) > 0.04
    luminance = [pictures.mean(1) for pictures in (plain, styled)]
    edges = [
        float((place.diff(dim=1).abs().sum((1, 2)) + place.diff(dim=2).abs().sum((1, 2))).mean()) for place in luminance
    ]
    assert edges[1] > 1.15 * edges[0]


@pytest.mark.parametrize("style", [style for style in STYLES if style != "shadow"])
def test_a_style_keeps_the_colours_of_the_prompt(style: str) -> None:
    scenes = world.scenes(64, 8)
    inks = torch.tensor(world.PALETTE.inks)[scenes.colour] * 2 - 1
    grounds = torch.tensor(world.PALETTE.grounds)[scenes.ground] * 2 - 1
    pictures = world.draw(scenes, style)
    coverage = ink(pictures, scenes)[:, None]
    mixed = grounds[:, :, None, None] + coverage * (inks - grounds)[:, :, None, None]
    assert torch.allclose(mixed, pictures, atol=1e-5)


def test_styles_differ_from_one_another() -> None:
    scenes = world.scenes(64, 8)
    drawn = [world.draw(scenes, style) for style in (styles.PLAIN, *STYLES)]
    for index, one in enumerate(drawn):
        for other in drawn[index + 1 :]:
            assert float((one - other).abs().mean()) > 0.03


def test_an_unknown_style() -> None:
    with pytest.raises(NotFoundError, match="no style 'cubist': choose plain, outline"):
        world.draw(world.scenes(1, 0), "cubist")
