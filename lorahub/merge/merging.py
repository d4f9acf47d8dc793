"""Merging adapters with a method of the table, each layer stored as balanced factors with its error.

A layer on each core of the CPU; on a device those that are alike (one shape, the same adapters of the same ranks) together,
in batches. The rule: no more dense ΔW than the largest layer's, or one batch, and the output is ever held.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorahub.algebra.adapter import Adapter
from lorahub.algebra.batched import BATCH_BYTES, Factored, batches
from lorahub.algebra.decompose import naming
from lorahub.algebra.lowrank import LowRank
from lorahub.algebra.machine import give_freed_memory_back, one_thread, side_by_side
from lorahub.algebra.ranks import RankRule, fixed
from lorahub.algebra.recipe import Step
from lorahub.algebra.truncate import LayerReport, Progress, Truncated, choosers, rounded
from lorahub.errors import UsageError
from lorahub.merge import joint
from lorahub.merge.alike import Alike, Chooser, Pair, content, factors_of
from lorahub.merge.elementwise import merged
from lorahub.merge.methods import Method, Value, check_settings, check_weights, find
from lorahub.merge.reduction import Reduced, reduce

_EVERYTHING = fixed(2**31)
_LARGE = 2**22
"""Numbers of a dense layer after which memory is given back. Measured on two adapters of SDXL, `ties`: without, the peak was
932 MB, 394 MB of it the output and 118 MB the largest layer; with, 672 MB, for 5 % more time."""


@one_thread()
def merge(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    method: str,
    settings: Mapping[str, object],
    rule: RankRule | None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Truncated:
    """Adapters merged by a method of `METHODS`, layer by layer: w_i · ΔW_i are what is merged.

    A layer that an adapter lacks is zero there: it adds nothing and has no vote in an elected mean, but counts among the
    adapters where a sum is divided by their number. Offsets are merged as matrices of one row are; where a method works on
    a joint basis, tsv and iso_c, they add up. Embeddings are carried as in addition.

    rule: what to keep of each layer; methods that are not dense can do without. The report's errors are distances between
    the merged ΔW and what is kept of it. `fixed` is near the optimum (a randomised SVD); `energy` and `relative` hold for
    what is stored; a budget is spent by the leading singular values and the mean of the others.
    dtype: of the new factors; float64 computes in it, with exact SVDs. device: where to compute; the result is on the CPU,
    and the same on all of them but for rounding.
    Raises UsageError for settings, weights or a missing rule, BaseMismatchError for adapters that cannot be added,
    VerificationError for NaN or Inf, and for factors that overflow `dtype`.
    """
    row, checked = find(method), check_settings(method, settings)
    check_weights(method, tuple(weights), len(adapters))
    if row.dense and rule is None:
        raise UsageError(
            f"what {method} makes is not low-rank: say what to keep of it with a rank, energy, relative or size rule"
        )
    union = functools.reduce(operator.add, adapters)  # for its checks, and for all names in order
    work = _Work(row, checked, adapters, weights, dtype == torch.float64, device)
    keeping, spectra = rule or _EVERYTHING, {}
    if keeping.overall is not None:
        spectra = {name: _sigma(each) for name, each in work.layers(union.layers, lambda name: lambda sigma: 1)}
    shapes = {name: layer.matrix_shape for name, layer in union.layers.items()}
    chooser = choosers(keeping, shapes, spectra.__getitem__)
    made: dict[str, LowRank] = {}
    report: dict[str, LayerReport] = {}
    for done, (name, reduced) in enumerate(work.layers(union.layers, chooser), 1):
        with naming(name):
            made[name], report[name] = _stored(reduced, union.layers[name].shape, dtype)
        if progress:
            progress(done, len(union.layers))
    layers = {name: made[name] for name in union.layers if made[name].rank}
    report = {name: report[name] for name in union.layers}
    offsets = {name: work.offset(name) for name in union.offsets}
    said: dict[str, object] = {"method": method, "weights": [float(weight) for weight in weights], **checked}
    if rule is not None:
        said["rule"] = str(rule)
    recipe = Step("merge", said, tuple(adapter.recipe for adapter in adapters))
    return Truncated(union.base, layers, offsets, union.embeddings, recipe, report)


@dataclass(frozen=True)
class _Work:
    """One merge: what to do, to what."""

    method: Method
    settings: Mapping[str, Value]
    adapters: Sequence[Adapter]
    weights: Sequence[float]
    exact: bool
    device: str

    def layers(self, names: Iterable[str], chooser: Chooser) -> Iterator[tuple[str, Reduced | None]]:
        """(name, the merged layer) of all layers, those that are alike after each other; None where it is zero.

        Raises VerificationError that names the layer, for NaN or Inf.
        """
        present = {name: self._present(name) for name in names}

        def kind(name: str) -> Hashable:
            return tuple((i, layer.rank, layer.matrix_shape) for i, layer in present[name].items())

        # On a core of a CPU a batch gains nothing: small operations start at once, and large ones leave its cache.
        on_cpu = self.device == "cpu"
        limit = 0 if on_cpu else BATCH_BYTES
        groups = list(batches(present, kind, lambda name: self._bytes(present[name]), limit))

        def work(together: list[str]) -> dict[str, Reduced]:
            some = {name: present[name] for name in together}
            found = self._reduced(some, chooser) if some[together[0]] else {}
            if on_cpu and size(together) >= _LARGE:  # else pieces of its matrices pile up between the results
                give_freed_memory_back()
            return found

        def size(together: list[str]) -> int:
            return math.prod(_matrix_shape(present[together[0]])) if self.method.dense else 0

        each = side_by_side(work, groups, size, max(map(size, groups), default=0)) if on_cpu else map(work, groups)
        for together, found in zip(groups, each, strict=True):
            yield from ((name, found.get(name)) for name in together)

    def _present(self, name: str) -> dict[int, LowRank]:
        """Index of an adapter -> what it puts into the merge, where it has this layer."""
        present = {i: adapter.layers[name] for i, adapter in enumerate(self.adapters) if name in adapter.layers}
        if self.method.consensus != "slerp":
            present = {i: layer * self.weights[i] for i, layer in present.items()}
        return {i: layer for i, layer in present.items() if layer.rank}

    def _bytes(self, present: Mapping[int, LowRank]) -> int:
        """Of one layer in a batch: thin and small matrices in float64, and those as large as what is merged."""
        rank = sum(layer.rank for layer in present.values())
        rows, columns = _matrix_shape(present)
        thin = 8 * (4 * rank * (rows + columns) + 12 * rank**2)
        merged_rows = rows if self.method.dense else rank if self.method.joint else 0
        # All adapters, the result and two more; and what a sparsifier makes on its way: sorting takes most.
        numbers = (len(present) + 3) * (8 if self.exact else 4) + (48 if self.method.sparsify == "della" else 8)
        return thin + numbers * merged_rows * columns

    def _reduced(self, layers: Alike, chooser: Chooser) -> dict[str, Reduced]:
        """The merged layers, which are alike: `chooser(name)(singular values)` triplets of each."""
        if self.method.dense:
            pairs = factors_of(layers, torch.float64 if self.exact else torch.float32, self.device)
            start = torch.cat([down for _, down in pairs.values()], 1)
            # Measured on layers of SDXL at rank 64: at most 0.9 % above the optimum with these, 1.6 % if all took one.
            power = 1 if self.method.sparsify == "trim" else 2
            chooses, names = [chooser(name) for name in layers], [*layers]
            return dict(zip(names, reduce(self._merged(pairs, names), start, chooses, names, power=power), strict=True))
        return {name: _of_all(found) for name, found in self._joint(layers, chooser).items()}

    def _merged(self, pairs: Mapping[int, Pair], names: Sequence[str]) -> Tensor:
        return merged(pairs, self.weights, self.method, self.settings, names)

    def _joint(self, layers: Alike, chooser: Chooser) -> dict[str, Factored]:
        if self.method.joint:
            return joint.knots(layers, chooser, self._merged, self.exact, self.device)
        if self.method.consensus == "tsv":
            return joint.tsv(layers, float(self.settings["share"]), chooser, self.exact, self.device)
        if self.method.consensus == "iso_c":
            return joint.iso_c(layers, chooser, self.exact, self.device)
        return joint.slerp(layers, self.weights, chooser, self.exact, self.device)

    def offset(self, name: str) -> Tensor:
        """A merged offset, float32."""
        present = {i: adapter.offsets[name] for i, adapter in enumerate(self.adapters) if name in adapter.offsets}
        one = torch.ones(1, 1)
        if self.method.consensus in ("sum", "ties"):
            pairs = {i: (one[None] * self.weights[i], offset[None, None]) for i, offset in present.items()}
            return self._merged(pairs, [name])[0, 0]
        if self.method.consensus == "slerp":
            rows = {i: LowRank.of(one, offset[None]) for i, offset in present.items()}
            found = joint.slerp({name: rows}, self.weights, lambda name: content, False, "cpu")[name]
            return (found.up @ found.down)[0].float()
        return torch.stack([self.weights[i] * offset for i, offset in present.items()]).sum(0)


def _matrix_shape(present: Mapping[int, LowRank]) -> tuple[int, int]:
    return next((layer.matrix_shape for layer in present.values()), (0, 0))


def _sigma(reduced: Reduced | None) -> Tensor:
    return reduced.found.sigma if reduced else torch.zeros(0, dtype=torch.float64)


def _of_all(found: Factored) -> Reduced:
    """With the norms that the singular values tell, all of which are known."""
    squares = found.sigma.square()
    return Reduced(found, float(squares.sum().sqrt()), float(squares[found.up.shape[1] :].sum().sqrt()))


def _stored(reduced: Reduced | None, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[LowRank, LayerReport]:
    """The triplets kept as one block of balanced factors in `dtype`, and what that cost."""
    if reduced is None:
        return LowRank(shape, ()), LayerReport(0, 0, 0.0, 0.0, 0.0)
    found = reduced.found
    rank = found.up.shape[1]
    layer, rounding = rounded(found.up, found.down, found.sigma[:rank], shape, dtype)
    return layer, LayerReport(len(found.sigma), rank, reduced.norm, reduced.error, rounding)
