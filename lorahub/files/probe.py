"""Is this adapter that one? Compared by what they do to random vectors (Freivalds), whatever their factors look like.

For X with independent standard normal columns, E‖(A - B) X‖² = p ‖A - B‖²: p thin products per layer measure the
distance without bias, and a difference cannot hide, since it vanishes on random vectors with probability zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lorahub.algebra.adapter import Adapter
from lorahub.algebra.lowrank import Block, LowRank
from lorahub.algebra.machine import in_numpy

_Array = npt.NDArray[Any]

PROBES = 8

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Distance:
    """Estimated Frobenius norms: of the reference, of the difference, and the layer with the largest share of it."""

    norm: float
    difference: float
    worst_layer: str

    @property
    def relative(self) -> float:
        """The difference as a share of the reference; 0 between two zeros, inf when only the reference is zero."""
        if self.difference == 0:
            return 0.0
        return self.difference / self.norm if self.norm else math.inf


def distance(reference: Adapter, other: Adapter, *, seed: int = 0) -> Distance:
    """The Frobenius distance between two adapters of one base, estimated from PROBES random vectors per layer.

    Blocks that hold the same bits differ by nothing. NaN in either makes `difference` NaN, which no tolerance accepts.
    """
    zeros = {
        name: LowRank(layer.shape, ())  # what an absent layer is
        for layers in (reference.layers, other.layers)
        for name, layer in layers.items()
    }
    longest = max((zero.matrix_shape[1] for zero in zeros.values()), default=0)
    vectors: _Array = torch.randn(longest, PROBES, generator=torch.Generator().manual_seed(seed)).numpy()
    total, apart, worst, worst_layer = 0.0, 0.0, -1.0, ""
    with in_numpy():
        for name, zero in zeros.items():
            size, gap = _layer(reference.layers.get(name, zero), other.layers.get(name, zero), vectors)
            total, apart = total + size, apart + gap
            if not gap <= worst:
                worst, worst_layer = gap, name
    size, gap = _offset_distance(reference.offsets, other.offsets)
    return Distance(math.sqrt(total + size), math.sqrt(apart + gap), worst_layer)


def identical(reference: Adapter, other: Adapter) -> bool:
    """Whether both hold the same factors, bit for bit: then they are one vector, and nothing needs to be estimated."""
    return (
        reference.layers.keys() == other.layers.keys()
        and reference.offsets.keys() == other.offsets.keys()
        and all(_same_bits(layer, other.layers[name]) for name, layer in reference.layers.items())
        and all(torch.equal(offset, other.offsets[name]) for name, offset in reference.offsets.items())
    )


def _same_bits(one: LowRank, other: LowRank) -> bool:
    if one.stored_dtype is None or other.stored_dtype is None:
        return False
    mine, theirs = one.blocks[0], other.blocks[0]
    return _same(mine.up, theirs.up) and _same(mine.down, theirs.down)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and np.array_equal(_bits(one), _bits(other))


def _bits(factor: Tensor) -> _Array:
    """As integers, which NumPy compares several times faster than anything compares halves."""
    array: _Array = factor.detach().view(_INTEGERS[factor.dtype.itemsize]).numpy()
    return array


def _layer(mine: LowRank, theirs: LowRank, vectors: _Array) -> tuple[float, float]:
    """Mean squares of what ΔW of mine, and ΔW of mine less that of theirs, do to the vectors [in or more, PROBES]."""
    rows, columns = mine.matrix_shape
    vectors = vectors[:columns]
    others = theirs.blocks
    if len(others) == 1 and others[0].rank == mine.rank:
        others = _cut(others[0], [block.rank for block in mine.blocks])
    image, gap = np.zeros((2, rows, PROBES), np.float32)
    nothing = Block(torch.zeros(rows, 0), torch.zeros(0, columns))
    for block, other in zip_longest(mine.blocks, others, fillvalue=nothing):
        inner = _wide(block.down) @ vectors
        expected = _outer(block, inner)
        image += expected
        if not _same(block.down, other.down):
            inner = _wide(other.down) @ vectors
        elif block.scale == other.scale and _same(block.up, other.up):
            continue
        gap += expected - _outer(other, inner)
    return _mean_square(image), _mean_square(gap)


def _cut(block: Block, ranks: list[int]) -> tuple[Block, ...]:
    """The block as a sum of blocks of these ranks, views of it."""
    parts = zip(torch.split(block.up, ranks, dim=1), torch.split(block.down, ranks), strict=True)
    return tuple(Block(up, down, block.scale) for up, down in parts)


def _outer(block: Block, inner: _Array) -> _Array:
    return block.scale * (_wide(block.up) @ inner)


def _wide(factor: Tensor) -> _Array:
    array: _Array = factor.detach().float().numpy()
    return array


def _mean_square(image: _Array) -> float:
    wide = image.astype(np.float64).ravel()
    return float(wide @ wide) / PROBES


def _offset_distance(reference: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> tuple[float, float]:
    size, gap = 0.0, 0.0
    for name in reference.keys() | other.keys():
        zero = torch.zeros(())
        mine, theirs = reference.get(name, zero).double(), other.get(name, zero).double()
        size += float(mine.square().sum())
        gap += float((mine - theirs).square().sum())
    return size, gap
