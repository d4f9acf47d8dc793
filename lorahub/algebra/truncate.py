"""Rank reduction of a whole adapter, with the error it made: a layer on each core, or on a device in bounded batches.

The rule: nothing larger than the factors of these layers, or one batch, and the output is ever held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from lorahub.algebra.adapter import Adapter
from lorahub.algebra.batched import Factored, alone, decompose_all
from lorahub.algebra.decompose import decompose, naming
from lorahub.algebra.lowrank import Block, LowRank
from lorahub.algebra.machine import keep_freed_memory, one_thread, side_by_side
from lorahub.algebra.ranks import RankRule
from lorahub.algebra.recipe import Step
from lorahub.errors import VerificationError

Progress = Callable[[int, int], None]
"""Called with (layers done, layers in all)."""
_Use = TypeVar("_Use")


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


@one_thread()
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
    keep_freed_memory()
    exact, layers = dtype == torch.float64, adapter.layers
    spectra = {}
    if rule.overall is not None:
        spectra = dict(_each(layers, lambda name: _first, exact, device, lambda name, found: found.sigma))
    chooser = choosers(rule, {name: layer.matrix_shape for name, layer in layers.items()}, spectra.__getitem__)

    def store(name: str, found: Factored) -> tuple[LowRank, LayerReport]:
        return _stored(layers[name], found, dtype)

    made: dict[str, LowRank] = {}
    report: dict[str, LayerReport] = {}
    for done, (name, kept) in enumerate(_each(layers, chooser, exact, device, store), 1):
        made[name], report[name] = kept
        if progress:
            progress(done, len(layers))
    shorter = {name: made[name] for name in layers if made[name].rank}
    report = {name: report[name] for name in layers}
    recipe = Step("truncate", {"rule": str(rule)}, (adapter.recipe,))
    return Truncated(adapter.base, shorter, adapter.offsets, adapter.embeddings, recipe, report)


def spectrum(layer: LowRank, *, device: str = "cpu") -> Tensor:
    """The singular values of ΔW, float64, descending; those that are only rounding noise are left out."""
    return decompose(layer, exact=True, device=device).sigma if layer.rank else torch.zeros(0, dtype=torch.float64)


def choosers(
    rule: RankRule, shapes: Mapping[str, tuple[int, int]], spectrum_of: Callable[[str], Tensor]
) -> Callable[[str], Callable[[Tensor], int]]:
    """layer name -> the function that decides its rank, once layers that compete have been weighed.

    shapes: (rows, columns) of every layer; others get none. spectrum_of: layer name -> its singular values; asked only
    where they compete.
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
    return lambda name: lambda sigma: min(ranks.get(name, 0), len(sigma))


def _each(
    layers: Mapping[str, LowRank],
    chooser: Callable[[str], Callable[[Tensor], int]],
    exact: bool,
    device: str,
    use: Callable[[str, Factored], _Use],
) -> Iterator[tuple[str, _Use]]:
    """(name, use(name, decomposition)) of every layer; raises VerificationError that names the layer."""

    def work(name: str) -> tuple[str, _Use]:
        with naming(name):
            return name, use(name, alone(layers[name], chooser(name), exact=exact))

    # On a core of a CPU together is slower: 200 layers of SDXL, rank 64 + 64 to 64, took 1.4 s and 16 MB one by one,
    # 2.9 s and 378 MB in batches.
    if device == "cpu":
        yield from side_by_side(work, layers)
        return
    for name, found in decompose_all(layers, chooser, device):
        with naming(name):
            yield name, use(name, found)


def _first(sigma: Tensor) -> int:
    return min(1, len(sigma))


def _stored(layer: LowRank, found: Factored, dtype: torch.dtype) -> tuple[LowRank, LayerReport]:
    rank, sigma = found.up.shape[1], found.sigma.numpy()
    kept, rounding = rounded(found.up, found.down, found.sigma[:rank], layer.shape, dtype)
    norm, error = math.sqrt(sigma @ sigma), math.sqrt(sigma[rank:] @ sigma[rank:])
    return kept, LayerReport(layer.rank, rank, norm, error, rounding)


def rounded(
    up: Tensor, down: Tensor, sigma: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[LowRank, float]:
    """up @ down as one block in `dtype`, on the CPU, and the norm of what rounding changed.

    up [out, rank], down [rank, in]: balanced, each carries the square root of `sigma` [rank].
    Raises VerificationError when a factor overflows `dtype`.
    """
    new_up, new_down = up.to(dtype), down.to(dtype)
    # Columns are orthogonal and share σ evenly, so ‖ΔU V‖² = Σ_j σ_j ‖Δu_j‖², and likewise for V.
    change = _change(new_up, up, 0) + _change(new_down, down, 1)
    rounding = math.sqrt(float(sigma.to(change.device) @ change.double()))
    if not math.isfinite(rounding):
        raise VerificationError(
            f"the factors overflow {str(dtype).removeprefix('torch.')}: save as bfloat16 or float32"
        )
    return LowRank(shape, (Block(new_up.cpu(), new_down.cpu()),) if len(sigma) else ()), rounding


def _change(rounded: Tensor, exact: Tensor, axis: int) -> Tensor:
    """Squared lengths of what rounding changed, along an axis."""
    if rounded.dtype == exact.dtype:
        return exact.new_zeros(exact.shape[1 - axis])
    return rounded.to(exact.dtype).sub_(exact).square_().sum(axis)  # widened first: mixed precisions subtract slowly
