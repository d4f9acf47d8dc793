"""Adapters with the true layer shapes of SDXL and SD1.5 and decaying spectra, written as the files that tools exchange.

Every layer is up = G1 S^1/2 Q, down = Q^T S^1/2 G2 with random G, a random orthogonal Q and σ_i ~ i^-p, p uniform in
(0.6, 1.2): trained factors look like this, with no column that alone carries a singular vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

import lorahub as lh
from lorahub import bases
from lorahub.algebra.recipe import Source

LCM_TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
    "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip
"""The modules that the LCM distillation scripts of diffusers train."""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Recipe:
    """What to make: the layers of `base` whose names end in `targets`, at most `limit` of them."""

    base: str
    targets: tuple[str, ...] = LCM_TARGETS
    rank: int = 64
    seed: int = 0
    limit: int | None = None


def layer_shapes(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """Canonical layer name -> weight shape, in the order of the model."""
    layers = bases.get(recipe.base).components["unet"].layers
    chosen = {
        f"unet.{name}": shape
        for name, shape in layers.items()
        if any(name == target or name.endswith(f".{target}") for target in recipe.targets)
    }
    return dict(list(chosen.items())[: recipe.limit])


def make(recipe: Recipe, *, dtype: torch.dtype = torch.float16) -> lh.Adapter:
    """The adapter in memory; the same recipe always gives the same numbers."""
    random = torch.Generator().manual_seed(recipe.seed)
    layers = {name: _layer(shape, recipe.rank, random, dtype) for name, shape in layer_shapes(recipe).items()}
    return lh.Adapter(recipe.base, layers, recipe=Source(f"{recipe.base}-r{recipe.rank}-{recipe.seed}"))


def write(recipe: Recipe, folder: Path, *, format: str = "kohya") -> Path:
    """The adapter as an fp16 file in `folder`."""
    path = folder / f"{recipe.base}-{len(recipe.targets)}-r{recipe.rank}-{recipe.seed}-{format}.safetensors"
    lh.save(make(recipe), path, format=format, dtype="fp16")
    return path


def by_shape(recipe: Recipe) -> dict[tuple[int, ...], list[str]]:
    """Weight shape -> the layers that have it: what is timed on one layer of each shape is extrapolated with this."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, shape in layer_shapes(recipe).items():
        groups.setdefault(shape, []).append(name)
    return groups


def _layer(shape: tuple[int, ...], rank: int, random: torch.Generator, dtype: torch.dtype) -> lh.LowRank:
    rows, columns = shape[0], math.prod(shape[1:])
    power = 0.6 + 0.6 * float(torch.rand((), generator=random))
    roots = torch.arange(1, rank + 1).pow(-power / 2)
    rotation = torch.linalg.qr(torch.randn(rank, rank, generator=random)).Q
    up = torch.randn(rows, rank, generator=random) @ (roots[:, None] / math.sqrt(rows) * rotation)
    down = (rotation.T * roots / math.sqrt(columns)) @ torch.randn(rank, columns, generator=random)
    return lh.LowRank.of(up.to(dtype), down.to(dtype), shape=shape)
