"""Remove to the trash, restore from it, purge it. Rows go first, files later: a blob without a row is only garbage."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from registry import search
from registry.errors import ConflictError
from registry.models import Adapter, Version
from registry.references import parse_reference
from registry.resolve import version_rows
from registry.rows import chunks


def remove(session: Session, reference: str) -> list[Version]:
    """Move to the trash; a bare name means all its versions. Raises ConflictError while an alias points at one."""
    rows = version_rows(session, reference)
    parsed = parse_reference(reference)
    whole = parsed.name is not None and parsed.number is None and parsed.alias is None
    if not whole:
        for row in rows:
            if row.aliases:
                alias = f"{row.adapter.name}@{row.aliases[0].alias}"
                raise ConflictError(
                    f"{row.adapter.name}:{row.number} is {alias}: point the alias elsewhere, or remove it"
                )
    now = datetime.now(UTC)
    for row in rows:
        row.deleted_at = now
    return _settle(session, rows)


def restore(session: Session, reference: str) -> list[Version]:
    """Bring back from the trash; a bare name means all its versions there."""
    rows = version_rows(session, reference, trashed=True)
    for row in rows:
        row.deleted_at = None
    return _settle(session, rows)


def purge(session: Session, reference: str | None, older_than: datetime | None) -> int:
    """Delete rows in the trash for good: those of a reference, or all, if removed before a time; returns how many."""
    if reference is not None:
        rows = version_rows(session, reference, trashed=True)
    else:
        rows = list(session.scalars(select(Version).where(Version.deleted_at.is_not(None))))
    gone = [row for row in rows if older_than is None or (row.deleted_at is not None and row.deleted_at < older_than)]
    for chunk in chunks(row.id for row in gone):
        session.execute(delete(Version).where(Version.id.in_(chunk)))
    for chunk in chunks({row.adapter_id for row in gone}):
        empty = ~select(Version.id).where(Version.adapter_id == Adapter.id).exists()
        session.execute(delete(Adapter).where(Adapter.id.in_(chunk), empty))
    session.expire_all()
    return len(gone)


def choose_latest(session: Session, adapter_id: int) -> None:
    """Mark the highest live version of an adapter, and no other."""
    session.flush()
    highest = session.scalar(
        select(func.max(Version.number)).where(Version.adapter_id == adapter_id, Version.deleted_at.is_(None))
    )
    mine = update(Version).where(Version.adapter_id == adapter_id)
    # Two statements: the unique index is checked row by row, and must not see two latest ones in between.
    session.execute(mine.where(Version.latest, Version.number.is_distinct_from(highest)).values(latest=False))
    session.execute(mine.where(~Version.latest, Version.number == highest).values(latest=True))


def _settle(session: Session, rows: list[Version]) -> list[Version]:
    for adapter_id in {row.adapter_id for row in rows}:
        choose_latest(session, adapter_id)
        search.index(session, adapter_id)
    return rows
