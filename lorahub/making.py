"""Turn vectors into a file: combine, rank-reduce if asked, save, and say what it cost. What combine, resize and convert
share, and what a replay does again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import torch

from lorahub.algebra.adapter import Adapter
from lorahub.algebra.geometry import normalised
from lorahub.algebra.ranks import RankRule, energy, fixed, relative
from lorahub.algebra.recipe import Recipe, Step, expression
from lorahub.algebra.truncate import Truncated, truncate
from lorahub.errors import UsageError
from lorahub.files.saving import DTYPES, Saved, default_format, file_budget, save
from lorahub.files.store import check_target
from lorahub.merge import check_settings, merge

Progress = Callable[[int, int], None]

LINEAR = "linear"
"""Addition: not a method of `lorahub.merge`, because it is exact and needs no reduction."""


def checked_settings(method: str, given: Mapping[str, str | float | int]) -> dict[str, str | float | int]:
    """All settings of a method, parsed, with defaults. Raises UsageError for a method or setting that does not exist."""
    if method != LINEAR:
        return check_settings(method, given)
    if given:
        raise UsageError(f"addition has no settings: name a method that has {' and '.join(given)}")
    return {}


@dataclass(frozen=True)
class Combination:
    """Weighted adapters, and how they become one: added up, or merged by a method of `lorahub.merge`.

    length: the norm that the result gets by scaling, after ranks are reduced; None leaves it as it is.
    Raises UsageError for a method or settings that do not exist.
    """

    terms: Sequence[tuple[float, Adapter]]
    method: str = LINEAR
    settings: Mapping[str, str | float | int] = field(default_factory=dict)
    length: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", checked_settings(self.method, self.settings))

    @property
    def base(self) -> str:
        return self.terms[0][1].base

    @cached_property
    def planned(self) -> Adapter:
        """The sum itself; where a method merges instead, an adapter with the layers and the recipe of the result."""
        parts = [adapter if weight == 1 else weight * adapter for weight, adapter in self.terms]
        whole = sum(parts[1:], start=parts[0])
        if self.method == LINEAR:
            return whole
        weights = [weight for weight, _ in self.terms]
        recipes = tuple(adapter.recipe for _, adapter in self.terms)
        return replace(
            whole, recipe=Step("merge", {"method": self.method, "weights": weights, **self.settings}, recipes)
        )

    def reduced(
        self,
        rule: RankRule | None,
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> Adapter:
        """The result before it is scaled, its ranks reduced by `rule`; a sum without a rule is returned as it is.

        Raises what `truncate` and `lorahub.merge.merge` raise.
        """
        if self.method == LINEAR:
            if rule is None:
                return self.planned
            return truncate(self.planned, rule, dtype=dtype, device=device, progress=progress)
        weights, adapters = [weight for weight, _ in self.terms], [adapter for _, adapter in self.terms]
        return merge(adapters, weights, self.method, self.settings, rule, dtype=dtype, device=device, progress=progress)


@dataclass(frozen=True)
class Wish:
    """What the result should be like; at most one of rank, energy, relative and max_size (bytes) is given."""

    rank: int | None = None
    energy: float | None = None
    relative: float | None = None
    max_size: int | None = None
    format: str | None = None
    dtype: str = "fp16"
    device: str = "cpu"
    force: bool = False
    drop: Collection[str] = ()

    def __post_init__(self) -> None:
        given = [name for name in ("rank", "energy", "relative", "max_size") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} exclude each other: give one rank rule")

    def rule(self, adapter: Adapter, format: str) -> RankRule | None:
        """The rank rule that was asked for, if any."""
        if self.rank is not None:
            return fixed(self.rank)
        if self.energy is not None:
            return energy(self.energy)
        if self.relative is not None:
            return relative(self.relative)
        if self.max_size is not None:
            return file_budget(adapter, self.max_size, format=format, dtype=self.dtype)
        return None


@dataclass(frozen=True)
class Made:
    """A file that was made: where it is, what it holds, and what rank reduction left out (norms; None without)."""

    saved: Saved
    base: str
    recipe: Recipe
    expression: str
    method: str
    settings: Mapping[str, str | float | int]
    ranks: tuple[int, int]
    """Smallest and largest rank of a layer."""
    rank_before: int
    """Largest rank of a layer before reduction."""
    rule: str | None
    error: float | None
    relative_error: float | None
    factor: float | None
    """What the result was multiplied by, to have the norm that was asked for."""
    read_back_error: float
    """Relative distance between ΔW in the file and ΔW as computed, before any rounding."""


def make(adapter: Adapter | Combination, path: str | Path, wish: Wish, *, progress: Progress | None = None) -> Made:
    """Write `adapter` to `path` as wished, one layer in memory at a time, read back and compared.

    Raises what `Combination.reduced` and `save` raise; then nothing is written.
    """
    if wish.dtype not in DTYPES:
        raise UsageError(f"no such dtype: {wish.dtype!r}; expected one of {', '.join(DTYPES)}")
    check_target(Path(path), force=wish.force)
    job = adapter if isinstance(adapter, Combination) else Combination(((1.0, adapter),))
    chosen = wish.format or default_format(job.base, Path(path))
    rule = wish.rule(job.planned, chosen)
    result = job.reduced(rule, dtype=DTYPES[wish.dtype], device=wish.device, progress=progress)
    reduced = result if isinstance(result, Truncated) else None
    before = [layer.rank_before for layer in reduced.report.values()] if reduced else _ranks(result)
    factor = None
    if job.length is not None:
        result = normalised(result, job.length)
        factor = cast("float", cast("Step", result.recipe).settings["factor"])
    saved = save(
        result,
        path,
        format=chosen,
        dtype=wish.dtype,
        force=wish.force,
        drop=wish.drop,
        max_size=wish.max_size,
    )
    ranks = [rank for rank in _ranks(result) if rank] or [0]
    # The factors of a reduced adapter were rounded when they were made; what saving changed comes on top.
    rounding = reduced.relative_rounding if reduced else 0.0
    return Made(
        saved,
        result.base,
        result.recipe,
        expression(result.recipe),
        job.method,
        job.settings,
        (min(ranks), max(ranks)),
        max(before, default=0),
        str(rule) if rule else None,
        reduced.error * abs(factor or 1.0) if reduced else None,
        reduced.relative_error if reduced else None,
        factor,
        math.hypot(saved.error, rounding),
    )


def merged(
    adapters: Sequence[Adapter],
    weights: Sequence[float] | None = None,
    *,
    method: str,
    rule: RankRule | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    **settings: str | float | int,
) -> Adapter:
    """The adapters merged by a method that addition cannot express: `merged([a, b], method="ties", rule=fixed(64))`.

    weights: what each adapter is multiplied by first; 1 by default. method, settings: see `lorahub methods`.
    rule: how the ranks of the result are reduced. The result is `Truncated`: it says what that left out.
    Raises UsageError for methods, settings and weights that do not fit, and what `lorahub.merge.merge` raises.
    """
    if weights is None:
        weights = [1.0] * len(adapters)
    if len(weights) != len(adapters) or not adapters:
        raise UsageError(f"expected a weight for each of at least one adapter, got {len(weights)} for {len(adapters)}")
    terms = tuple(zip(map(float, weights), adapters, strict=True))
    return Combination(terms, method, settings).reduced(rule, device=device, progress=progress)


def _ranks(adapter: Adapter) -> list[int]:
    return [layer.rank for layer in adapter.layers.values()]


def dtype_of(adapter: Adapter) -> str:
    """The widest of the half and single precisions that the adapter's factors are stored in."""
    present = {block.up.dtype for layer in adapter.layers.values() for block in layer.blocks}
    names = [name for name, dtype in DTYPES.items() if dtype in present]
    return names[0] if len(names) == 1 else "fp32"
