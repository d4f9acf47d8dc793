"""Two adapters side by side: lengths, angle, distance, and how much of their rank they use, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lorahub.algebra.adapter import Adapter
from lorahub.algebra.decompose import spectrum_of_products
from lorahub.algebra.geometry import Matrix, Products, layer_by_layer, offset_gram
from lorahub.algebra.lowrank import LowRank
from lorahub.algebra.ranks import smallest_with_tail
from lorahub.algebra.truncate import spectrum

RANK_USE_ENERGY = 0.99


@dataclass(frozen=True)
class LayerComparison:
    """One layer of both: Frobenius norms of ΔW, cosine of the angle (None when either is zero)."""

    norms: tuple[float, float]
    cosine: float | None


@dataclass(frozen=True)
class RankUse:
    """How much of the stored rank an adapter uses.

    stored: mean rank of the factors. used: mean numerical rank. energy: mean number of singular values that hold 99 % of
    a layer's squared norm. zero_layers: layers whose ΔW is zero.
    """

    stored: float
    used: float
    energy: float
    zero_layers: int


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. cosine is None when either adapter is zero; distance is the norm of the difference."""

    norms: tuple[float, float]
    cosine: float | None
    distance: float
    only_in_first: tuple[str, ...]
    only_in_second: tuple[str, ...]
    layers: Mapping[str, LayerComparison]
    rank_use: tuple[RankUse, RankUse]


def compare(
    first: Adapter, second: Adapter, *, device: str = "cpu", progress: Callable[[int, int], None] | None = None
) -> Comparison:
    """Lengths, angle and rank use of two adapters of one base, from their factors.

    progress: called with (layers done, layers in all).
    Raises BaseMismatchError when the bases differ, VerificationError for NaN or Inf in the weights.
    """
    sides = (first, second)

    def measure(name: str, products: Products) -> tuple[Matrix, list[_Use | None]]:
        own = [side.layers.get(name) for side in sides]
        uses = [None if layer is None else _use(layer, products, at, device) for at, layer in enumerate(own)]
        return products.inner, uses

    total = offset_gram(sides).numpy()
    layers: dict[str, LayerComparison] = {}
    uses: tuple[list[_Use], list[_Use]] = ([], [])
    count = len(first.layers.keys() | second.layers.keys())
    for name, (gram, found) in layer_by_layer(sides, measure, device):
        layers[name] = _layer(gram)
        total += gram
        for known, use in zip(uses, found, strict=True):
            known += [use] if use else []
        if progress:
            progress(len(layers), count)
    whole = _layer(total)
    return Comparison(
        whole.norms,
        whole.cosine,
        math.sqrt(max(float(total[0, 0] + total[1, 1] - 2 * total[0, 1]), 0.0)),
        tuple(name for name in first.layers if name not in second.layers),
        tuple(name for name in second.layers if name not in first.layers),
        layers,
        (_rank_use(uses[0]), _rank_use(uses[1])),
    )


def _layer(gram: Matrix) -> LayerComparison:
    one, other = (math.sqrt(max(float(gram[i, i]), 0.0)) for i in (0, 1))
    cosine = max(-1.0, min(1.0, float(gram[0, 1]) / (one * other))) if one and other else None
    return LayerComparison((one, other), cosine)


class _Use(NamedTuple):
    """Of one layer: columns of its factors, numerical rank, singular values that hold 99 % of the squared norm."""

    stored: int
    used: int
    energy: int


def _use(layer: LowRank, products: Products, version: int, device: str) -> _Use:
    sigma = spectrum_of_products(*products.of(version), products.dtype)
    if sigma is None:  # they are too small, or zero: without squaring anything they can be told from rounding noise
        sigma = spectrum(layer, device=device)
    return _Use(layer.rank, len(sigma), smallest_with_tail(sigma, 1 - RANK_USE_ENERGY))


def _rank_use(layers: Sequence[_Use]) -> RankUse:
    stored, used, energy = (sum(column) / len(layers) for column in zip(*layers, strict=True)) if layers else (0, 0, 0)
    return RankUse(stored, used, energy, sum(not layer.used for layer in layers))
