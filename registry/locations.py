"""Where files lie in folders the user owns. A file that is not there is marked missing; only `forget` deletes."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from registry import search
from registry.models import Adapter, LocationRow, Version
from registry.records import Location
from registry.resolve import version_row
from registry.rows import chunks, location_record


def locate(session: Session, row: Version, location: Location) -> None:
    """Record that the file of this version lies here now, whatever lay here before. Index it afterwards."""
    place = session.scalar(
        select(LocationRow).where(LocationRow.root == location.root, LocationRow.relpath == location.relpath)
    )
    before = None if place is None else place.version_id
    if place is None:
        place = LocationRow(root=location.root, relpath=location.relpath)
        session.add(place)
    place.version_id = row.id
    for field in ("size", "mtime_ns", "inode", "device"):
        setattr(place, field, getattr(location, field))
    place.missing_since = None
    place.seen_at = location.seen_at or datetime.now(UTC)
    session.flush()
    if before is not None and before != row.id:
        search.index(session, session.get_one(Version, before).adapter_id)


def mark_missing(session: Session, root: str, relpaths: Iterable[str]) -> int:
    """Mark places as missing, from now if they were not yet; returns how many newly are."""
    count = 0
    for chunk in chunks(relpaths):
        places = update(LocationRow).where(LocationRow.root == root, LocationRow.relpath.in_(chunk))
        done = session.execute(
            places.where(LocationRow.missing_since.is_(None)).values(missing_since=datetime.now(UTC))
        )
        count += done.rowcount  # type: ignore[attr-defined]
    return count


def mark_present(session: Session, root: str, relpaths: Iterable[str]) -> int:
    """Undo `mark_missing`; returns how many were missing."""
    count = 0
    for chunk in chunks(relpaths):
        places = update(LocationRow).where(LocationRow.root == root, LocationRow.relpath.in_(chunk))
        done = session.execute(places.where(LocationRow.missing_since.is_not(None)).values(missing_since=None))
        count += done.rowcount  # type: ignore[attr-defined]
    return count


def roots(session: Session) -> tuple[str, ...]:
    """The folders under which there are places."""
    return tuple(session.scalars(select(LocationRow.root).distinct().order_by(LocationRow.root)))


def forget(session: Session, root: str, relpaths: Iterable[str]) -> int:
    """Delete places, never files or versions; returns how many there were."""
    count = 0
    for chunk in chunks(relpaths):
        these = LocationRow.root == root, LocationRow.relpath.in_(chunk)
        owners = select(Version.adapter_id).join(LocationRow, LocationRow.version_id == Version.id)
        touched = session.scalars(owners.where(*these)).all()
        session.execute(delete(LocationRow).where(*these))
        count += len(touched)
        for adapter_id in sorted(set(touched)):
            search.index(session, adapter_id)
    return count


def find(
    session: Session,
    root: str | None,
    reference: str | None,
    missing: bool | None,
    hashed: bool | None = None,
) -> tuple[Location, ...]:
    """Places under a root, of a version, missing or not, hashed or not, in the order of their paths."""
    query = (
        select(LocationRow, Adapter.name, Version.number)
        .join(Version, Version.id == LocationRow.version_id)
        .join(Adapter, Adapter.id == Version.adapter_id)
        .order_by(LocationRow.root, LocationRow.relpath)
    )
    if root is not None:
        query = query.where(LocationRow.root == root)
    if reference is not None:
        query = query.where(LocationRow.version_id == version_row(session, reference).id)
    if hashed is not None:
        query = query.where(Version.hashed.is_(hashed))
    if missing is not None:
        gone = LocationRow.missing_since
        query = query.where(gone.is_not(None) if missing else gone.is_(None))
    return tuple(location_record(row, name, number) for row, name, number in session.execute(query))
