"""Two adapters side by side: lengths, angle, distance, and how much of their rank they use, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from lorahub.algebra.adapter import Adapter
from lorahub.algebra.geometry import layer_grams
from lorahub.algebra.lowrank import LowRank
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

    Raises BaseMismatchError when the bases differ, VerificationError for NaN or Inf in the weights.
    """
    grams = layer_grams([first, second], device)
    total = sum(grams.values(), start=torch.zeros(2, 2, dtype=torch.float64))
    for name in first.offsets.keys() | second.offsets.keys():
        zero = torch.zeros(1, dtype=torch.float64)
        pair = [side.offsets[name].double() if name in side.offsets else zero for side in (first, second)]
        total = total + torch.tensor([[float((one * other).sum()) for other in pair] for one in pair])
    layers = {name: _layer(gram) for name, gram in grams.items()}
    whole = _layer(total)
    shown = [0, len(first.layers) + len(second.layers)]

    def advance() -> None:
        shown[0] += 1
        if progress:
            progress(shown[0], shown[1])

    return Comparison(
        whole.norms,
        whole.cosine,
        math.sqrt(max(float(total[0, 0] + total[1, 1] - 2 * total[0, 1]), 0.0)),
        tuple(name for name in first.layers if name not in second.layers),
        tuple(name for name in second.layers if name not in first.layers),
        layers,
        (_rank_use(first, device, advance), _rank_use(second, device, advance)),
    )


def _layer(gram: torch.Tensor) -> LayerComparison:
    one, other = (math.sqrt(max(float(gram[i, i]), 0.0)) for i in (0, 1))
    cosine = max(-1.0, min(1.0, float(gram[0, 1]) / (one * other))) if one and other else None
    return LayerComparison((one, other), cosine)


def _rank_use(adapter: Adapter, device: str, advance: Callable[[], None]) -> RankUse:
    used, energy, zero = [0], [0], 0
    for layer in adapter.layers.values():
        numeric, enough = _layer_rank_use(layer, device)
        used.append(numeric)
        energy.append(enough)
        zero += numeric == 0
        advance()
    count = max(len(adapter.layers), 1)
    stored = sum(layer.rank for layer in adapter.layers.values())
    return RankUse(stored / count, sum(used) / count, sum(energy) / count, zero)


def _layer_rank_use(layer: LowRank, device: str) -> tuple[int, int]:
    sigma = spectrum(layer, device=device)
    squares = sigma.square()
    share = torch.cumsum(squares, 0) / squares.sum()
    return len(sigma), int((share < RANK_USE_ENERGY).sum()) + (1 if len(sigma) else 0)
