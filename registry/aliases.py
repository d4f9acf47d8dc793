"""Words that point at versions. Every move is kept, with who made it."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.errors import NotFoundError
from registry.models import Alias, AliasHistory, Version
from registry.names import adapter_name, alias_name
from registry.records import AliasChange
from registry.resolve import adapter_row, version_row


def point(session: Session, reference: str, alias: str, by: str | None) -> Version:
    """Let `alias` point at this version; pointing it where it points already changes nothing."""
    row = version_row(session, reference)
    alias = alias_name(alias)
    current = session.get(Alias, (row.adapter_id, alias))
    if current is not None and current.version_id == row.id:
        return row
    previous = _number(session, current)
    if current is None:
        session.add(Alias(adapter_id=row.adapter_id, alias=alias, version_id=row.id))
    else:
        current.version_id = row.id
    _remember(session, row.adapter_id, alias, previous, row.number, by)
    session.expire(row, ["aliases"])
    return row


def drop(session: Session, name: str, alias: str, by: str | None) -> None:
    """Remove an alias; its history stays. Raises NotFoundError if there is none."""
    adapter = adapter_row(session, adapter_name(name))
    alias = alias_name(alias)
    current = session.get(Alias, (adapter.id, alias))
    if current is None:
        raise NotFoundError(f"{adapter.name!r} has no alias {alias!r}: see `lorahub show {adapter.name}`")
    _remember(session, adapter.id, alias, _number(session, current), None, by)
    session.delete(current)
    session.flush()


def history(session: Session, name: str, alias: str | None) -> tuple[AliasChange, ...]:
    """All moves of one alias, or of all of an adapter's, oldest first."""
    adapter = adapter_row(session, adapter_name(name))
    query = select(AliasHistory).where(AliasHistory.adapter_id == adapter.id).order_by(AliasHistory.id)
    if alias is not None:
        query = query.where(AliasHistory.alias == alias_name(alias))
    return tuple(
        AliasChange(alias=row.alias, previous=row.previous, number=row.number, by=row.by, at=row.at)
        for row in session.scalars(query)
    )


def _number(session: Session, alias: Alias | None) -> int | None:
    return None if alias is None else session.scalar(select(Version.number).where(Version.id == alias.version_id))


def _remember(
    session: Session, adapter_id: int, alias: str, previous: int | None, number: int | None, by: str | None
) -> None:
    session.add(
        AliasHistory(adapter_id=adapter_id, alias=alias, previous=previous, number=number, by=by, at=datetime.now(UTC))
    )
    session.flush()
