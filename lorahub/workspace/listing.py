"""Which adapters are there: lists and searches. Filters look at the newest version of each name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorahub.workspace.errors import translated

if TYPE_CHECKING:
    from lorahub.workspace.core import Workspace
    from registry.records import AdapterRecord

SORTS = ("name", "created", "seen", "size", "rank", "parameters")
Rank = int | tuple[int | None, int | None]


@translated()
def list_adapters(
    workspace: Workspace,
    *,
    base: str | None = None,
    rank: Rank | None = None,
    kind: str | None = None,
    tag: str | None = None,
    format: str | None = None,
    sort: str | None = None,
    limit: int | None = None,
) -> tuple[AdapterRecord, ...]:
    """Adapters whose newest version passes all filters, by name or by `sort` (one of SORTS, `-` before it: descending).

    `rank` is one rank or an inclusive range, its ends may be None.
    """
    return workspace.registry.list(base=base, rank=rank, kind=kind, tag=tag, format=format, sort=sort, limit=limit)


@translated()
def search(
    workspace: Workspace,
    query: str,
    *,
    base: str | None = None,
    rank: Rank | None = None,
    kind: str | None = None,
    tag: str | None = None,
    format: str | None = None,
    sort: str | None = None,
    limit: int | None = 50,
) -> tuple[AdapterRecord, ...]:
    """Adapters in whose names, tags, trigger words, notes and paths every word of the query is found, the best first.

    Bare words match as prefixes, "quoted phrases" exactly; the filters are those of `list_adapters`.
    """
    return workspace.registry.search(
        query, base=base, rank=rank, kind=kind, tag=tag, format=format, sort=sort, limit=limit
    )
