"""Rank reduction of a whole adapter, one layer at a time, with the error it made.

The rule: nothing larger than one layer's factors and the output is ever held.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lorahub.algebra.adapter import Adapter
from lorahub.algebra.decompose import decompose
from lorahub.algebra.lowrank import Block, LowRank
from lorahub.algebra.ranks import RankRule
from lorahub.algebra.recipe import Step
from lorahub.errors import VerificationError

Progress = Callable[[int, int], None]
"""Called with (layers done, layers in all)."""


@dataclass(frozen=True)
class LayerReport:
    """What truncation did to one layer. Norms are Frobenius norms of ΔW.

    error: norm of what was left out (Eckart-Young: sqrt of the sum of the dropped σ²).
    rounding: norm of what casting the new factors to the output dtype changed.
    """

    rank_before: int
    rank: int
    norm: float
    error: float
    rounding: float


@dataclass(frozen=True, eq=False)
class Truncated(Adapter):
    """An adapter that a rank rule made, with what it cost: `error` in total, `report` layer by layer."""

    report: Mapping[str, LayerReport] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """Frobenius norm of everything left out, over all layers."""
        return math.sqrt(sum(layer.error**2 for layer in self.report.values()))

    @property
    def rounding(self) -> float:
        """Frobenius norm of the change made by rounding factors to the output dtype, over all layers."""
        return math.sqrt(sum(layer.rounding**2 for layer in self.report.values()))

    @property
    def relative_rounding(self) -> float:
        """`rounding` as a share of the norm of what was kept; 0 for a zero adapter."""
        kept = math.sqrt(sum(max(layer.norm**2 - layer.error**2, 0.0) for layer in self.report.values()))
        return self.rounding / kept if kept else 0.0

    @property
    def relative_error(self) -> float:
        """`error` as a share of the norm of the layers before truncation; 0 for a zero adapter."""
        whole = math.sqrt(sum(layer.norm**2 for layer in self.report.values()))
        return self.error / whole if whole else 0.0


def truncate(
    adapter: Adapter,
    rule: RankRule,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Truncated:
    """The best approximation of every layer with the rank that `rule` gives it (Eckart-Young).

    Exact for each layer: the Frobenius error is the optimum for that rank up to rounding. Factors come out balanced
    (each carries the square root of the singular values), which keeps half precision away from under- and overflow.
    Layers that are zero, or get rank 0, are left out; offsets and embeddings pass unchanged.

    dtype: of the new factors. device: where the products run; the result is on the CPU.
    Raises VerificationError for NaN or Inf in the weights, and when a factor overflows `dtype`.
    """
    exact = dtype == torch.float64

    def spectrum_of(name: str) -> Tensor:
        layer = adapter.layers[name]
        if not layer.rank:
            return torch.zeros(0, dtype=torch.float64)
        return decompose(layer, lambda sigma: 1, exact=exact, device=device).sigma

    shapes = {name: layer.matrix_shape for name, layer in adapter.layers.items()}
    chooser = choosers(rule, shapes, spectrum_of)
    layers: dict[str, LowRank] = {}
    report: dict[str, LayerReport] = {}
    for done, (name, layer) in enumerate(adapter.layers.items(), 1):
        with naming(name):
            shorter, report[name] = _truncate_layer(layer, chooser(name), dtype, device)
        if shorter.rank:
            layers[name] = shorter
        if progress:
            progress(done, len(adapter.layers))
    recipe = Step("truncate", {"rule": str(rule)}, (adapter.recipe,))
    return Truncated(adapter.base, layers, adapter.offsets, adapter.embeddings, recipe, report)


@contextlib.contextmanager
def naming(layer: str) -> Iterator[None]:
    """Puts the layer's name before what is wrong with its values."""
    try:
        yield
    except VerificationError as error:
        raise VerificationError(f"{layer}: {error}") from None


def spectrum(layer: LowRank, *, device: str = "cpu") -> Tensor:
    """The singular values of ΔW, float64, descending; those that are only rounding noise are left out."""
    return decompose(layer, exact=True, device=device).sigma if layer.rank else torch.zeros(0, dtype=torch.float64)


def choosers(
    rule: RankRule, shapes: Mapping[str, tuple[int, int]], spectrum_of: Callable[[str], Tensor]
) -> Callable[[str], Callable[[Tensor], int]]:
    """layer name -> the function that decides its rank, once layers that compete have been weighed.

    shapes: (rows, columns) of every layer. spectrum_of: layer name -> its singular values; asked only where they compete.
    """
    alike = rule.per_layer
    if alike is not None:
        return lambda name: alike
    assert rule.overall is not None
    spectra = {}
    for name in shapes:
        with naming(name):
            spectra[name] = spectrum_of(name).cpu()
    ranks = rule.overall(spectra, shapes)
    return lambda name: lambda sigma: min(ranks[name], len(sigma))


def _truncate_layer(
    layer: LowRank, choose: Callable[[Tensor], int], dtype: torch.dtype, device: str
) -> tuple[LowRank, LayerReport]:
    if layer.rank == 0:
        return layer, LayerReport(0, 0, 0.0, 0.0, 0.0)
    found = decompose(layer, choose, exact=dtype == torch.float64, device=device)
    squares = found.sigma.square()
    kept, rounding = rounded(*found.factors(), found.sigma[: found.rank], layer.shape, dtype)
    norm, error = float(squares.sum().sqrt()), float(squares[found.rank :].sum().sqrt())
    return kept, LayerReport(layer.rank, found.rank, norm, error, rounding)


def rounded(
    up: Tensor, down: Tensor, sigma: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[LowRank, float]:
    """up @ down as one block in `dtype`, on the CPU, and the norm of what rounding changed.

    up [out, rank], down [rank, in]: balanced, each carries the square root of `sigma` [rank].
    Raises VerificationError when a factor overflows `dtype`.
    """
    new_up, new_down = up.to(dtype), down.to(dtype)
    # Columns are orthogonal and share σ evenly, so ‖ΔU V‖² = Σ_j σ_j ‖Δu_j‖², and likewise for V.
    change = (new_up - up).square_().sum(0).double() + (new_down - down).square_().sum(1).double()
    rounding = float((sigma * change.to(sigma.device)).sum().sqrt())
    if not math.isfinite(rounding):
        raise VerificationError(
            f"the factors overflow {str(dtype).removeprefix('torch.')}: save as bfloat16 or float32"
        )
    return LowRank(shape, (Block(new_up.cpu(), new_down.cpu()),) if len(sigma) else ()), rounding
