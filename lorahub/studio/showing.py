"""The demonstration: a style and the acceleration vector go through the registry, are added up, and draw in few steps.

The rule: the pictures come from the file that the registry keeps, so what is seen is what `combine` wrote.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from lorahub.algebra.adapter import Adapter
from lorahub.errors import ConflictError
from lorahub.loading import load_version
from lorahub.making import Wish
from lorahub.studio import grids, models, shipped, styles, world
from lorahub.studio.sampling import Sampler, sample, wearing
from lorahub.studio.scoring import Scorer, frechet, see
from lorahub.workspace.compatibility import Compatibility
from lorahub.workspace.composing import Composed, compose
from lorahub.workspace.opening import open as open_registry

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from lorahub.workspace.opening import Catalogue

STEPS = (1, 2, 4, 8, 50)
LAMBDAS = (0.8, 1.0)
"""Weights of the style and of the acceleration vector (arXiv 2311.05556, figure 3)."""
_SHOWN, _ACROSS = 6, 3

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Cell:
    """The scores of one row at one number of steps: share of pictures with all attributes right, of those in the style,
    and the Fréchet distance to guided pictures of the style drawn with 50 steps from other noise."""

    row: str
    sampler: str
    steps: int
    guidance: float
    attributes: float
    style: float
    distance: float


@dataclass(frozen=True)
class Row:
    """What draws one row of the picture."""

    scheduler: str
    guidance: float
    adapter: Adapter | None

    def sampler(self, steps: int) -> Sampler:
        return Sampler(self.scheduler, steps, self.guidance)


@dataclass(frozen=True)
class Shown:
    """What the demonstration found and left behind."""

    style: str
    prompts: tuple[str, ...]
    compatibility: Compatibility
    combined: Composed
    cells: tuple[Cell, ...]
    picture: Path
    page: Path


def show(
    output: Path,
    *,
    style: str = "shadow",
    prompt: str | None = None,
    pictures: int = 64,
    seed: int = 0,
    force: bool = False,
    weights: Path = shipped.SHIPPED,
    progress: Progress | None = None,
) -> Shown:
    """Draw base, style and style + LCM with 1 to 50 steps on the same prompts and noise; `output` gets a PNG and a page.

    prompt: instead of random ones, this one for every picture. pictures: how many each cell is scored on.
    Raises ConflictError when `output` has a registry already and `force` is off, UsageError for a prompt outside the
    grammar, NotFoundError for a style that does not exist.
    """
    styles.named(style)
    if prompt is not None:
        world.parse(prompt)
    prompts = world.scenes(pictures, seed).prompts if prompt is None else [prompt] * pictures
    home = output / "registry"
    if home.exists():
        if not force:
            raise ConflictError(f"{home} exists already: choose another folder, or begin afresh with --force")
        shutil.rmtree(home)
    output.mkdir(parents=True, exist_ok=True)
    with open_registry(home) as catalogue:
        compatibility, combined, adapters = _combine(catalogue, style, weights)
    pipe, scorer = shipped.load(weights), shipped.scorer(weights)
    rows = {
        "base": Row("ddim", models.GUIDANCE, None),
        style: Row("ddim", models.GUIDANCE, adapters[0]),
        f"{style} + LCM": Row("lcm", 1.0, adapters[1]),  # guidance is in the vector
    }
    drawn = _drawn(pipe, rows, prompts, seed, progress)
    with wearing(pipe, adapters[0]):  # from other noise, or a sampler that retraces the same path would seem nearer
        reference = sample(pipe, prompts, rows[style].sampler(STEPS[-1]), seed=seed + 1)
    cells = _scored(scorer, drawn, reference, rows, prompts, style)
    picture = grids.grid(
        [[cell[:_SHOWN] for cell in row] for row in drawn.values()],
        [*rows],
        [f"{steps} step{'s' if steps > 1 else ''}" for steps in STEPS],
        _ACROSS,
    )
    picture.save(output / "grid.png")
    text = grids.page(f"{style} in few steps", _words(style, combined, prompts), picture, table(cells))
    (output / "index.html").write_text(text, encoding="utf-8")
    return Shown(
        style, tuple(prompts[:_SHOWN]), compatibility, combined, cells, output / "grid.png", output / "index.html"
    )


def _combine(
    catalogue: Catalogue, style: str, weights: Path
) -> tuple[Compatibility, Composed, tuple[Adapter, Adapter]]:
    """Register both vectors, check them, register their sum at half its rank; the style and the sum as kept."""
    catalogue.add([shipped.path(style, weights)], name=style, kind="style", tags=["studio"])
    catalogue.add([shipped.path(shipped.LCM, weights)], name=shipped.LCM, kind="acceleration", tags=["studio"])
    catalogue.edit(shipped.LCM, run={"scheduler": "LCMScheduler", "steps": 4, "guidance_max": 1.0})
    compatibility = catalogue.compatible([style, shipped.LCM], weights=LAMBDAS)
    first, second = (_kept(catalogue, name) for name in (style, shipped.LCM))
    whole = LAMBDAS[0] * first + LAMBDAS[1] * second
    rank = max(layer.rank for layer in whole.layers.values())
    combined = compose(catalogue, whole, f"{style}-fast", Wish(rank=rank // 2, format="diffusers"), tags=["studio"])
    return compatibility, combined, (first, _kept(catalogue, combined.reference))


def _kept(catalogue: Catalogue, reference: str) -> Adapter:
    record = catalogue.get(reference)
    return load_version(catalogue.path(record), record)


def _drawn(
    pipe: StableDiffusionPipeline,
    rows: Mapping[str, Row],
    prompts: Sequence[str],
    seed: int,
    progress: Progress | None,
) -> dict[str, list[Tensor]]:
    drawn: dict[str, list[Tensor]] = {}
    done, total = 0, len(rows) * len(STEPS)
    for name, row in rows.items():
        drawn[name] = []
        with wearing(pipe, row.adapter):
            for steps in STEPS:
                drawn[name].append(sample(pipe, prompts, row.sampler(steps), seed=seed))
                done += 1
                if progress is not None:
                    progress(done, total, "cells")
    return drawn


def _scored(
    scorer: Scorer,
    drawn: dict[str, list[Tensor]],
    reference: Tensor,
    rows: Mapping[str, Row],
    prompts: Sequence[str],
    style: str,
) -> tuple[Cell, ...]:
    near = see(scorer, reference, prompts, style)
    cells = []
    for name, pictures in drawn.items():
        row = rows[name]
        for steps, cell in zip(STEPS, pictures, strict=True):
            seen = see(scorer, cell, prompts, style)
            distance = frechet(seen.features, near.features)
            shares = seen.accuracy(), seen.accuracy("style")
            cells.append(Cell(name, row.scheduler, steps, row.guidance, *shares, distance))
    return tuple(cells)


def table(cells: Sequence[Cell]) -> list[list[str]]:
    """The scores as text, one line for each cell under a head."""
    head = [
        "",
        "sampler",
        "steps",
        "guidance",
        "attributes right",
        "in the style",
        f"distance to the style's {STEPS[-1]} steps",
    ]
    return [head] + [
        [
            cell.row,
            cell.sampler,
            str(cell.steps),
            f"{cell.guidance:g}",
            f"{cell.attributes:.2f}",
            f"{cell.style:.2f}",
            f"{cell.distance:.2f}",
        ]
        for cell in cells
    ]


def _words(style: str, combined: Composed, prompts: Sequence[str]) -> list[str]:
    return [
        f"One tiny Stable Diffusion, the same prompts and the same noise in every cell: {'; '.join(prompts[:_SHOWN])}.",
        f"The last row is {combined.made.expression}, at rank {combined.made.ranks[1]} of {combined.made.rank_before}: "
        f"the acceleration vector was distilled on plain pictures and never saw the style.",
    ]
