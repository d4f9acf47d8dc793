"""Is this adapter that one? Compared by what they do to random vectors (Freivalds), whatever their factors look like.

For X with independent standard normal columns, E‖(A - B) X‖² = p ‖A - B‖²: p thin products per layer measure the
distance without bias, and a difference cannot hide, since it vanishes on random vectors with probability zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from lorahub.algebra.adapter import Adapter
from lorahub.algebra.lowrank import Block, LowRank

PROBES = 8


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
    names = dict.fromkeys([*reference.layers, *other.layers])
    columns = {
        name: layer.matrix_shape[1] for layers in (reference.layers, other.layers) for name, layer in layers.items()
    }
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(PROBES, max(columns.values(), default=0), generator=generator)  # rows: read along `down`
    total, apart, worst, worst_layer = 0.0, 0.0, -1.0, ""
    for name in names:
        size, gap = _layer(reference.layers.get(name), other.layers.get(name), vectors[:, : columns[name]])
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
    dtype = one.stored_dtype
    return dtype is not None and other.stored_dtype == dtype and _same(one.blocks[0], other.blocks[0])


def _same(one: Block, other: Block) -> bool:
    pairs = ((one.up, other.up), (one.down, other.down))
    return (
        one.scale == other.scale
        and all(mine.dtype == theirs.dtype and mine.shape == theirs.shape for mine, theirs in pairs)
        and all(torch.equal(*_integers(mine, theirs)) for mine, theirs in pairs)
    )


def _integers(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The bits of factors of one dtype as integers, eight bytes in each where they allow it: quick to compare."""
    size = tensors[0].dtype.itemsize
    steps = [step for t in tensors for step in (t.shape[1], t.storage_offset(), t.stride(0))]
    whole = all(t.stride(1) == 1 for t in tensors) and all(step * size % 8 == 0 for step in steps)
    narrow = {2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    return tuple(tensor.view(torch.int64 if whole else narrow) for tensor in tensors)


def _layer(mine: LowRank | None, theirs: LowRank | None, vectors: Tensor) -> tuple[float, float]:
    """Mean squares of what ΔW of mine, and ΔW of mine less that of theirs, do to the vectors [PROBES, in]."""
    blocks, others = mine.blocks if mine else (), theirs.blocks if theirs else ()
    if len(others) == 1 and others[0].rank == sum(block.rank for block in blocks):
        others = _cut(others[0], [block.rank for block in blocks])
    image, gap = torch.zeros(2, 1, dtype=torch.float64)
    for block, other in zip_longest(blocks, others):
        expected = _apply(block, vectors) if block else torch.zeros(1)
        image = image + expected
        if not (block and other and _same(block, other)):
            gap = gap + expected - (_apply(other, vectors) if other else 0.0)
    return float(image.square().sum()) / PROBES, float(gap.square().sum()) / PROBES


def _cut(block: Block, ranks: list[int]) -> tuple[Block, ...]:
    """The block as a sum of blocks of these ranks, views of it."""
    parts = zip(torch.split(block.up, ranks, dim=1), torch.split(block.down, ranks), strict=True)
    return tuple(Block(up, down, block.scale) for up, down in parts)


def _apply(block: Block, vectors: Tensor) -> Tensor:
    return block.scale * (vectors @ block.down.float().T @ block.up.float().T).double()


def _offset_distance(reference: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> tuple[float, float]:
    size, gap = 0.0, 0.0
    for name in reference.keys() | other.keys():
        zero = torch.zeros(())
        mine, theirs = reference.get(name, zero).double(), other.get(name, zero).double()
        size += float(mine.square().sum())
        gap += float((mine - theirs).square().sum())
    return size, gap
