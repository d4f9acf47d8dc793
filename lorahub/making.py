"""Turn a vector into a file: rank-reduce if asked, save, and say what it cost. What combine, resize and convert share."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from lorahub.algebra.adapter import Adapter
from lorahub.algebra.ranks import RankRule, energy, fixed, relative
from lorahub.algebra.recipe import expression
from lorahub.algebra.truncate import Truncated, truncate
from lorahub.errors import UsageError
from lorahub.files.saving import DTYPES, Saved, default_format, file_budget, save

Progress = Callable[[int, int], None]


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
    expression: str
    ranks: tuple[int, int]
    """Smallest and largest rank of a layer."""
    rank_before: int
    """Largest rank of a layer before reduction."""
    rule: str | None
    error: float | None
    relative_error: float | None
    read_back_error: float
    """Relative distance between ΔW in the file and ΔW as computed, before any rounding."""


def make(adapter: Adapter, path: str | Path, wish: Wish, *, progress: Progress | None = None) -> Made:
    """Write `adapter` to `path` as wished, one layer in memory at a time, read back and compared.

    Raises what `truncate` and `save` raise; then nothing is written.
    """
    if wish.dtype not in DTYPES:
        raise UsageError(f"no such dtype: {wish.dtype!r}; expected one of {', '.join(DTYPES)}")
    chosen = wish.format or default_format(adapter.base, Path(path))
    rule = wish.rule(adapter, chosen)
    before = max((layer.rank for layer in adapter.layers.values()), default=0)
    if rule is not None:
        adapter = truncate(adapter, rule, dtype=DTYPES[wish.dtype], device=wish.device, progress=progress)
    saved = save(
        adapter,
        path,
        format=chosen,
        dtype=wish.dtype,
        force=wish.force,
        drop=wish.drop,
        max_size=wish.max_size,
    )
    ranks = [layer.rank for layer in adapter.layers.values() if layer.rank] or [0]
    reduced = adapter if isinstance(adapter, Truncated) else None
    # The factors of a reduced adapter were rounded when they were made; what saving changed comes on top.
    rounding = reduced.relative_rounding if reduced else 0.0
    return Made(
        saved,
        adapter.base,
        expression(adapter.recipe),
        (min(ranks), max(ranks)),
        before,
        str(rule) if rule else None,
        reduced.error if reduced else None,
        reduced.relative_error if reduced else None,
        math.hypot(saved.error, rounding),
    )


def dtype_of(adapter: Adapter) -> str:
    """The widest of the half and single precisions that the adapter's factors are stored in."""
    present = {block.up.dtype for layer in adapter.layers.values() for block in layer.blocks}
    names = [name for name, dtype in DTYPES.items() if dtype in present]
    return names[0] if len(names) == 1 else "fp32"
