"""Numbers of a vector that need no base model: how much of each layer's rank is used, and how strong it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from lorahub.algebra.adapter import Adapter
from lorahub.algebra.lowrank import LowRank
from lorahub.algebra.ranks import smallest_with_tail
from lorahub.algebra.truncate import spectrum
from lorahub.errors import VerificationError
from lorahub.files.store import finite

ENERGY = 0.99


@dataclass(frozen=True)
class Layer:
    """stored: columns of the factors. used: numerical rank. energy: singular values that hold 99 % of the squared norm.

    norm: Frobenius norm of ΔW. rms: the root mean square of its entries, norm / sqrt(rows · columns).
    """

    stored: int
    used: int
    energy: int
    norm: float
    rms: float


@dataclass(frozen=True)
class Measured:
    """Every layer by its canonical name."""

    layers: Mapping[str, Layer]

    @property
    def stored(self) -> int:
        return sum(layer.stored for layer in self.layers.values())

    @property
    def used(self) -> int:
        return sum(layer.used for layer in self.layers.values())

    @property
    def norm(self) -> float:
        return math.sqrt(sum(layer.norm**2 for layer in self.layers.values()))

    @property
    def typical(self) -> float:
        """The median rms of the layers that are not zero; 0 if all are."""
        return median([layer.rms for layer in self.layers.values() if layer.rms] or [0.0])

    def to_json(self) -> dict[str, Any]:
        """Totals, and every layer's numbers."""
        count = max(len(self.layers), 1)
        return {
            "layer_count": len(self.layers),
            "norm": self.norm,
            "rank_stored": self.stored / count,
            "rank_used": self.used / count,
            "rank_99_percent": sum(layer.energy for layer in self.layers.values()) / count,
            "layers": {name: vars(layer) for name, layer in self.layers.items()},
        }


def measure(adapter: Adapter, *, device: str = "cpu", progress: Callable[[int, int], None] | None = None) -> Measured:
    """The numbers of every layer, from singular values in float64. Raises VerificationError for NaN or Inf."""
    layers = {}
    for name, layer in adapter.layers.items():
        layers[name] = _measure(name, layer, device)
        if progress is not None:
            progress(len(layers), len(adapter.layers))
    return Measured(layers)


def _measure(name: str, layer: LowRank, device: str) -> Layer:
    for block in layer.blocks:
        if not (finite(block.up.float()) and finite(block.down.float())):  # fp8 cannot be compared
            raise VerificationError(f"{name} holds NaN or Inf")
    sigma = spectrum(layer, device=device)
    norm, energy = float(sigma.norm()), smallest_with_tail(sigma, 1 - ENERGY)
    return Layer(layer.rank, len(sigma), energy, norm, norm / math.sqrt(math.prod(layer.matrix_shape)))
