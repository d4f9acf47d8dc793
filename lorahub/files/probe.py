"""Is this adapter that one? Compared by what they do to random vectors (Freivalds), whatever their factors look like.

For X with independent standard normal columns, E‖(A - B) X‖² = p ‖A - B‖²: p thin products per layer measure the
distance without bias, and a difference cannot hide, since it vanishes on random vectors with probability zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lorahub.algebra.adapter import Adapter
from lorahub.algebra.lowrank import LowRank

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

    NaN in either makes `difference` NaN, which no tolerance accepts.
    """
    generator = torch.Generator().manual_seed(seed)
    total, apart, worst, worst_layer = 0.0, 0.0, -1.0, ""
    for name in dict.fromkeys([*reference.layers, *other.layers]):
        mine, theirs = reference.layers.get(name), other.layers.get(name)
        columns = (mine or theirs).matrix_shape[1]  # type: ignore[union-attr]
        probes = torch.randn(columns, PROBES, generator=generator)
        expected, came = _apply(mine, probes), _apply(theirs, probes)
        size, gap = _mean_square(expected), _mean_square(expected - came)
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
    if dtype is None or other.stored_dtype != dtype or one.rank != other.rank:
        return False
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]  # integers compare five times faster
    mine, theirs = one.factors(dtype), other.factors(dtype)
    return all(torch.equal(a.view(bits), b.view(bits)) for a, b in zip(mine, theirs, strict=True))


def _apply(layer: LowRank | None, probes: Tensor) -> Tensor:
    result = torch.zeros((), dtype=torch.float64)
    for block in layer.blocks if layer else ():
        result = result + block.scale * (block.up.float() @ (block.down.float() @ probes)).double()
    return result


def _mean_square(values: Tensor) -> float:
    return float(values.square().sum()) / PROBES


def _offset_distance(reference: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> tuple[float, float]:
    size, gap = 0.0, 0.0
    for name in reference.keys() | other.keys():
        zero = torch.zeros(())
        mine, theirs = reference.get(name, zero).double(), other.get(name, zero).double()
        size += float(mine.square().sum())
        gap += float((mine - theirs).square().sum())
    return size, gap
