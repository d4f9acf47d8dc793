"""Lists: which adapters, which duplicates, which files are lost. Filters look at the newest live version of a name."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from sqlalchemy import ColumnElement, Select, exists, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session, contains_eager

from registry import search
from registry.errors import InvalidError
from registry.models import Adapter, Alias, LocationRow, Tag, Version
from registry.names import adapter_name, name_key, tag_name
from registry.records import AdapterRecord, VersionRecord, check_kind
from registry.resolve import adapter_row
from registry.rows import chunks, version_record

SORTS: dict[str, InstrumentedAttribute[Any]] = {
    "name": Adapter.name_key,
    "created": Version.created_at,
    "seen": Version.seen_at,
    "size": Version.size,
    "rank": Version.rank,
    "parameters": Version.parameters,
}
SAME: dict[str, InstrumentedAttribute[Any]] = {
    "file_sha256": Version.file_sha256,
    "data_sha256": Version.data_sha256,
    "fingerprint": Version.fingerprint,
}
Rank = int | tuple[int | None, int | None]


def adapters(
    session: Session,
    *,
    query: str | None,
    base: str | None,
    rank: Rank | None,
    kind: str | None,
    tag: str | None,
    format: str | None,
    sort: str | None,
    limit: int | None,
) -> tuple[AdapterRecord, ...]:
    """Adapters that pass all filters, sorted: by name, or by how well they match the query.

    Raises:
        InvalidError: an unknown sort or kind, an invalid tag, or a query without a word.
    """
    # First which ones, from narrow indexes; then everything about these.
    rows = select(Version.id).join(Adapter, Adapter.id == Version.adapter_id).where(Version.latest)
    if base is not None:
        rows = rows.where(Version.base == base)
    if kind is not None:
        rows = rows.where(Version.kind == check_kind(kind))
    if format is not None:
        rows = rows.where(Version.format == format)
    if rank is not None:
        rows = rows.where(*_ranks(rank))
    if tag is not None:
        rows = rows.where(exists().where(Tag.version_id == Version.id, Tag.tag == tag_name(tag)))
    if sort is not None:
        rows = rows.order_by(_order(sort))
    if query is not None:
        rows = search.narrow(session, rows, query)
    rows = rows.order_by(Adapter.name_key).limit(limit)
    ids = session.scalars(rows).all()
    whole = select(Version).join(Version.adapter).options(contains_eager(Version.adapter))
    found = {row.id: row for chunk in chunks(ids) for row in session.scalars(whole.where(Version.id.in_(chunk)))}
    return _adapter_records(session, [found[id_] for id_ in ids])


def names(session: Session, prefix: str, limit: int | None) -> tuple[str, ...]:
    """Names of live adapters that begin with `prefix` in any case; cheap enough for completion."""
    query = select(Adapter.name).where(exists().where(Version.adapter_id == Adapter.id, Version.latest))
    query = query.where(Adapter.name_key.startswith(name_key(prefix), autoescape=True))
    return tuple(session.scalars(query.order_by(Adapter.name_key).limit(limit)))


def versions(session: Session, query: Select[Version]) -> tuple[VersionRecord, ...]:
    """The versions a query selects, as records, in the order of their names and numbers."""
    query = query.join(Adapter, Adapter.id == Version.adapter_id).options(contains_eager(Version.adapter))
    return tuple(map(version_record, session.scalars(query.order_by(Adapter.name_key, Version.number))))


def all_versions(session: Session, name: str) -> tuple[VersionRecord, ...]:
    """Every version of a name, in the trash too; raises NotFoundError."""
    return versions(session, select(Version).where(Version.adapter_id == adapter_row(session, adapter_name(name)).id))


def duplicates(session: Session, by: str) -> tuple[tuple[VersionRecord, ...], ...]:
    """Groups of live versions that share a hash; raises InvalidError for a hash not in `SAME`."""
    if by not in SAME:
        raise InvalidError(f"expected one of {', '.join(SAME)}, got {by!r}")
    value = SAME[by]
    live = Version.deleted_at.is_(None)
    twice = select(value).where(live, value.is_not(None)).group_by(value).having(func.count() > 1)
    groups: dict[str, list[VersionRecord]] = defaultdict(list)
    for record in versions(session, select(Version).where(live, value.in_(twice))):
        groups[getattr(record, by)].append(record)
    return tuple(map(tuple, groups.values()))


def unreachable(session: Session) -> tuple[VersionRecord, ...]:
    """Live versions whose file is neither in the store nor at any place where it was seen last."""
    there = exists().where(LocationRow.version_id == Version.id, LocationRow.missing_since.is_(None))
    return versions(session, select(Version).where(Version.deleted_at.is_(None), ~Version.stored, ~there))


def _ranks(rank: Rank) -> list[ColumnElement[bool]]:
    low, high = (rank, rank) if isinstance(rank, int) else rank
    limits = [] if low is None else [Version.rank >= low]
    return limits if high is None else [*limits, Version.rank <= high]


def _order(sort: str) -> ColumnElement[Any]:
    column = SORTS.get(sort.removeprefix("-"))
    if column is None:
        raise InvalidError(f"expected a sort among {', '.join(SORTS)}, with '-' for descending, got {sort!r}")
    return column.desc().nulls_last() if sort.startswith("-") else column.asc().nulls_last()


def _adapter_records(session: Session, rows: list[Version]) -> tuple[AdapterRecord, ...]:
    numbers: dict[int, list[int]] = defaultdict(list)
    aliases: dict[int, dict[str, int]] = defaultdict(dict)
    for ids in chunks([row.adapter_id for row in rows]):
        live = select(Version.adapter_id, Version.number).where(
            Version.adapter_id.in_(ids), Version.deleted_at.is_(None)
        )
        for adapter_id, number in session.execute(live.order_by(Version.number)):
            numbers[adapter_id].append(number)
        pointers = select(Alias.adapter_id, Alias.alias, Version.number).join(Version, Version.id == Alias.version_id)
        for adapter_id, alias, number in session.execute(
            pointers.where(Alias.adapter_id.in_(ids)).order_by(Alias.alias)
        ):
            aliases[adapter_id][alias] = number
    return tuple(
        AdapterRecord(
            name=row.adapter.name,
            created_at=row.adapter.created_at,
            versions=tuple(numbers[row.adapter_id]),
            aliases=aliases[row.adapter_id],
            latest=version_record(row),
        )
        for row in rows
    )
