"""Small adapters with known singular values, and their dense twins, for the tests of the algebra."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lorahub.algebra import Adapter, Block, LowRank
from lorahub.algebra.recipe import Source


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    """Float64 [rows, columns] with orthonormal columns."""
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator(seed), dtype=torch.float64)).Q


def with_spectrum(
    sigma: Sequence[float],
    shape: tuple[int, ...],
    *,
    seed: int = 0,
    form: str = "balanced",
    dtype: torch.dtype = torch.float64,
) -> LowRank:
    """A layer with the given singular values.

    form: "balanced" (both factors carry the square root), "up" or "down" (one carries all), or "mixed" (balanced, and
    rotated by a random orthogonal matrix, as trained factors are).
    """
    rows, columns = shape[0], math.prod(shape[1:])
    values = torch.tensor(list(sigma), dtype=torch.float64)
    share = {"up": 1.0, "down": 0.0}.get(form, 0.5)
    up = orthonormal(rows, len(values), seed) * values**share
    down = (orthonormal(columns, len(values), seed + 1) * values ** (1 - share)).T
    if form == "mixed":
        rotation = orthonormal(len(values), len(values), seed + 2)
        up, down = up @ rotation, rotation.T @ down
    return LowRank.of(up.to(dtype), down.to(dtype), shape=shape)


def random_layer(
    shape: tuple[int, ...], rank: int, *, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> LowRank:
    """Random normal factors."""
    random = generator(seed)
    up = torch.randn(shape[0], rank, generator=random, dtype=torch.float64)
    down = torch.randn(rank, math.prod(shape[1:]), generator=random, dtype=torch.float64)
    return LowRank.of(up.to(dtype), down.to(dtype), scale=scale, shape=shape)


def adapter(name: str = "style", base: str = "sd15", **layers: LowRank) -> Adapter:
    """An adapter whose layers are `unet.<keyword>`, with a source that has a hash."""
    return Adapter(
        base,
        {f"unet.{key}": layer for key, layer in layers.items()},
        recipe=Source(name, data_sha256=f"hash of {name}"),
    )


def single(layer: LowRank) -> Adapter:
    return adapter(layer=layer)


def dense(layer: LowRank) -> Tensor:
    """ΔW as a float64 matrix, block by block, by none of the code under test."""
    rows, columns = layer.matrix_shape
    total = torch.zeros(rows, columns, dtype=torch.float64)
    for block in layer.blocks:
        total += block.scale * (block.up.double() @ block.down.double())
    return total


def flat(value: Adapter, shapes: dict[str, tuple[int, int]]) -> Tensor:
    """The adapter as one long float64 vector over the layers in `shapes`; absent layers are zero."""
    parts = [
        dense(value.layers[name]) if name in value.layers else torch.zeros(shape, dtype=torch.float64)
        for name, shape in sorted(shapes.items())
    ]
    return torch.cat([part.flatten() for part in parts])


def reloaded(layer: LowRank) -> LowRank:
    """The same numbers in other memory, as when a file is loaded twice."""
    return LowRank(layer.shape, tuple(Block(b.up.clone(), b.down.clone(), b.scale) for b in layer.blocks))


def best_error(matrix: Tensor, rank: int) -> float:
    """The least Frobenius error of any matrix of that rank (Eckart-Young), from a full SVD in float64."""
    return float(torch.linalg.svdvals(matrix)[rank:].square().sum().sqrt())
