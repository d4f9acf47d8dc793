"""Two base models on disk become one adapter: tuned - base, layer by layer, reduced to low rank.

The rule: as many layers are in memory at a time as take the room of the largest, or on a GPU a bounded batch of one shape.
What an adapter cannot carry, or only one side has, is counted and said, never lost in silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from lorahub.algebra.adapter import Adapter
from lorahub.algebra.batched import BATCH_BYTES, batches
from lorahub.algebra.decompose import naming
from lorahub.algebra.dense import Leading, known_rank, leading, leading_all, singular_values
from lorahub.algebra.lowrank import LowRank
from lorahub.algebra.machine import side_by_side
from lorahub.algebra.ranks import RankRule
from lorahub.algebra.recipe import Recipe, Source, Step, Sum
from lorahub.algebra.truncate import LayerReport, Progress, Truncated, choosers, rounded
from lorahub.checkpoints import Checkpoint, Stored, open_checkpoint
from lorahub.errors import BaseMismatchError, UsageError, VerificationError

Choose = Callable[[Tensor], int]
_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False)
class Extracted(Truncated):
    """The difference of two checkpoints as an adapter, with what the reduction cost (`report`, `error`).

    rule: the rank rule that made it. left_out: what differs and is not in it ("norms and biases", "embeddings"), as a
    share of the norm of the whole difference. same: layers that do not differ. notes: what else there is to know.
    """

    rule: str = ""
    left_out: Mapping[str, float] = field(default_factory=dict)
    same: int = 0
    notes: tuple[str, ...] = ()


def extract(
    base: str | Path | Checkpoint,
    tuned: str | Path | Checkpoint,
    rule: RankRule | Callable[[Adapter], RankRule],
    *,
    only: Collection[str] = (),
    offsets: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Extracted:
    """The low-rank part of tuned - base: a fine-tuned model, or a distilled one, as an adapter of its base.

    rule: how much rank each layer gets, or a function that makes the rule from an adapter with the layers that differ.
    A rule of fixed rank costs at most 0.2 % more error than the best approximation (`algebra.dense`); others none.
    only: components to compare (`unet`); all by default. offsets: keep the differences of norms and biases, which only
    kohya files can hold. dtype: of the factors. device: where the products run.
    Raises BaseMismatchError when the checkpoints are of different bases, VerificationError for NaN or Inf, UsageError
    when no layer differs or a component is unknown, and what `open_checkpoint` raises.
    """
    pair = _Pair.of(base, tuned, only, device)
    changed: dict[str, LowRank] = {}
    extra: dict[str, Tensor] = {name: gap for name in pair.vectors if (gap := pair.difference(name)) is not None}
    kept = {name: gap.cpu() for name, gap in extra.items()} if offsets else {}
    lost = {} if offsets else {"norms and biases": _total(extra.values())}
    lost["embeddings"] = _total(gap for name in pair.embeddings if (gap := pair.difference(name)) is not None)
    chooser, recipe, text = _chooser(pair, rule, kept, {"only": sorted(only), "offsets": offsets}, progress)
    report: dict[str, LayerReport] = {}
    done = 0
    for names, leadings in pair.each(pair.together(chooser), lambda gaps: _leading(gaps, chooser)):
        for name, found in leadings.items():
            with naming(name):
                changed[name], report[name] = _reduced(found, pair.shape(name), dtype)
        done += len(names)
        if progress:
            progress(done, len(pair.layers))
    report = {name: report[name] for name in pair.layers if name in report}
    changed = {name: changed[name] for name in report if changed[name].rank}
    if not report and not kept:
        raise UsageError(f"{pair.tuned.path} and {pair.base.path} do not differ in any layer that both have")
    whole = math.hypot(*(layer.norm for layer in report.values()), *lost.values(), _total(kept.values()))
    shares = {what: size / whole for what, size in lost.items() if size}
    same = len(pair.layers) - len(report)
    return Extracted(
        pair.base.base, changed, kept, {}, recipe, report, rule=text, left_out=shares, same=same, notes=pair.notes
    )


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two checkpoints of one base, and the parameters that both have."""

    base: Checkpoint
    tuned: Checkpoint
    layers: Sequence[str]
    embeddings: Sequence[str]
    vectors: Sequence[str]
    notes: tuple[str, ...]
    device: str

    @classmethod
    def of(
        cls, base: str | Path | Checkpoint, tuned: str | Path | Checkpoint, only: Collection[str], device: str
    ) -> _Pair:
        one, other = (each if isinstance(each, Checkpoint) else open_checkpoint(each) for each in (base, tuned))
        if one.base != other.base:
            raise BaseMismatchError(
                f"{one.path} is {one.base}, {other.path} is {other.base}: a difference needs two models of one base"
            )
        components = {name.partition(".")[0] for name in (*one.layers, *other.layers)}
        if unknown := sorted(set(only) - components):
            raise UsageError(
                f"neither checkpoint has a component {unknown[0]!r}: they have {', '.join(sorted(components))}"
            )
        wanted = set(only) or components
        both = [
            [name for name in mine if name in theirs and name.partition(".")[0] in wanted and _alike(name, one, other)]
            for mine, theirs in ((one.layers, other.layers), (one.vectors, other.vectors))
        ]
        layers = [name for name in both[0] if not one.layers[name].embedding]
        if not layers:
            raise BaseMismatchError(f"{one.path} and {other.path} have no layer in common")
        embeddings = [name for name in both[0] if one.layers[name].embedding]
        notes = tuple(_notes(one, other, wanted))
        return cls(one, other, layers, embeddings, both[1], notes, device)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.base.layers[name].shape

    def together(self, chooser: Callable[[str], Choose]) -> Iterator[list[str]]:
        """The layers, in groups that `leading_all` takes at once; one at a time on the CPU, which gains nothing by more."""

        def kind(name: str) -> Hashable:
            matrix = _matrix(self.base.layers[name])
            return matrix, known_rank(chooser(name), min(matrix))

        def size(name: str) -> int:
            return 4 * 4 * math.prod(self.shape(name))  # itself, stacked, its products and its bases

        yield from batches(self.layers, kind, size, 0 if self.device == "cpu" else BATCH_BYTES)

    def each(
        self, groups: Iterable[list[str]], work: Callable[[dict[str, Tensor]], _Result]
    ) -> Iterator[tuple[list[str], _Result]]:
        """(names, work(their differences)) of every group; on the CPU as many at once as take the room of the largest.

        Differences that are none are left out.
        """
        differences = (
            (names, {name: gap for name in names if (gap := self.difference(name)) is not None}) for names in groups
        )

        def size(item: tuple[list[str], dict[str, Tensor]]) -> int:
            return sum(gap.numel() for gap in item[1].values())

        def both(item: tuple[list[str], dict[str, Tensor]]) -> tuple[list[str], _Result]:
            return item[0], work(item[1])

        if self.device != "cpu":
            return map(both, differences)
        largest = max(math.prod(self.shape(name)) for name in self.layers)
        return side_by_side(both, differences, size, largest)

    def difference(self, name: str) -> Tensor | None:
        """tuned - base in float32, with weights as matrices [out, in * kernel]; None where there is none.

        Of different precisions, a difference that rounding to the coarser one accounts for is none.
        Raises VerificationError for NaN or Inf.
        """
        mine, theirs = self.base.read(name).to(self.device), self.tuned.read(name).to(self.device)
        if mine.dtype != theirs.dtype:
            coarse = max(mine.dtype, theirs.dtype, key=lambda dtype: torch.finfo(dtype).eps)
            if torch.equal(mine.to(coarse).float(), theirs.to(coarse).float()):
                return None
        gap = theirs.float().sub_(mine.float())
        low, high = map(float, gap.aminmax()) if gap.numel() else (0.0, 0.0)
        if not math.isfinite(low + high):  # extremes are NaN when any element is
            raise VerificationError(f"{name}: the weights hold NaN or Inf")
        if low == high == 0:
            return None
        return gap.reshape(len(gap), -1) if name in self.base.layers else gap


def _alike(name: str, one: Checkpoint, other: Checkpoint) -> bool:
    """True; two models of an unlisted base may turn out to have one name for layers of two sizes, which is refused."""
    mine, theirs = (each.layers.get(name) or each.vectors[name] for each in (one, other))
    if _matrix(mine) != _matrix(theirs):
        raise BaseMismatchError(
            f"{name} is {list(mine.shape)} in {one.path} and {list(theirs.shape)} in {other.path}: these are two bases"
        )
    return True


def _matrix(stored: Stored) -> tuple[int, int]:
    return stored.shape[0], math.prod(stored.shape[1:])


def _notes(one: Checkpoint, other: Checkpoint, wanted: Collection[str]) -> Iterator[str]:
    for each, rest in ((one, other), (other, one)):
        alone = [name for name in each.layers if name not in rest.layers and name.partition(".")[0] in wanted]
        if alone:
            parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in alone))
            yield f"only {each.path} has {len(alone)} layers of {parts}, such as {alone[0]}: they were not compared"
    for each in (one, other):
        yield from (f"{each.path}: {note}" for note in each.notes)


def _chooser(
    pair: _Pair,
    rule: RankRule | Callable[[Adapter], RankRule],
    offsets: Mapping[str, Tensor],
    settings: Mapping[str, object],
    progress: Progress | None,
) -> tuple[Callable[[str], Choose], Recipe, str]:
    """layer -> the function that decides its rank; the recipe of the result; the rule in words."""
    difference = Sum(((1.0, _source(pair.tuned)), (-1.0, _source(pair.base))))

    def recipe(text: str) -> Recipe:
        return Step(
            "extract", {"rule": text, **{name: value for name, value in settings.items() if value}}, (difference,)
        )

    spectra: dict[str, Tensor] = {}
    if not isinstance(rule, RankRule) or rule.overall is not None:
        singly = ([name] for name in pair.layers)
        for done, (_, found) in enumerate(pair.each(singly, _singular_values), 1):
            spectra |= found
            if progress:
                progress(done, len(pair.layers))
    if not isinstance(rule, RankRule):
        shapes = {name: LowRank(pair.shape(name), ()) for name in spectra}
        rule = rule(Adapter(pair.base.base, shapes, offsets, {}, recipe("budget")))
    matrices = {name: _matrix(pair.base.layers[name]) for name in spectra}
    return choosers(rule, matrices, spectra.__getitem__), recipe(str(rule)), str(rule)


def _source(checkpoint: Checkpoint) -> Source:
    """A checkpoint as a parent; one of many files has a stand-in for the hash of its file."""
    files = list(checkpoint.files)
    return Source(
        checkpoint.name,
        checkpoint.data_sha256,
        path=str((files[0] if len(files) == 1 else checkpoint.path).absolute()),
        file_sha256=checkpoint.stand_in_sha256,
    )


def _leading(gaps: Mapping[str, Tensor], chooser: Callable[[str], Choose]) -> dict[str, Leading]:
    """The decompositions of differences of one shape and rule; a single one is not copied."""
    if len(gaps) < 2:
        return {name: leading(gap, chooser(name)) for name, gap in gaps.items()}
    found = leading_all(torch.stack([*gaps.values()]), chooser(next(iter(gaps))))
    return dict(zip(gaps, found, strict=True))


def _singular_values(gaps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: singular_values(gap) for name, gap in gaps.items()}


def _reduced(found: Leading, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[LowRank, LayerReport]:
    layer, rounding = rounded(found.up.contiguous(), found.down.contiguous(), found.sigma, shape, dtype)
    full = min(len(found.up), found.down.shape[1])
    return layer, LayerReport(full, len(found.sigma), found.norm, found.error, rounding)


def _total(tensors: Iterator[Tensor] | Collection[Tensor]) -> float:
    """The norm of all of them together."""
    return math.hypot(*(float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) for tensor in tensors))
