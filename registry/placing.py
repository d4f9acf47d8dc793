"""Say which version lies at a place in a user's folder, when its file has been read, or read again.

A file that has not been hashed is a version whose `file_sha256` is a stand-in. The rule: an identity that turns out to be
known joins what is known, so that a file that was moved, touched or put back keeps its name, its number and all that people
said of it; only a content that this name never had becomes a new version.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import ColumnElement, and_, delete, exists, select, update
from sqlalchemy.orm import Session

from registry import locations, search, trash, versions
from registry.errors import InvalidError
from registry.models import Adapter, Alias, LocationRow, ParentRow, Version
from registry.names import name_key
from registry.records import Facts, Location
from registry.rows import write_facts, write_overrides

NEW, SAME, MOVED, REPLACED = "new", "same", "moved", "replaced"
"""The outcomes: a name of its own, the version that lay there, one that lay elsewhere, another content of the name."""


def place(
    session: Session, location: Location, facts: Facts, norms: Mapping[str, float] | None, names: Iterable[str]
) -> tuple[Version, str]:
    """The version that lies at the location, and how it came there; `names` are tried in order for a new adapter."""
    current = _lying(session, location)
    if not facts.hashed:
        row, outcome = _unread(session, current, facts, names)
    elif current is not None and current.file_sha256 == facts.file_sha256:
        row, outcome = current, SAME
    else:
        row, outcome = _identified(session, current, location, facts, names)
    if outcome != NEW and facts.hashed and (facts.fingerprint is not None or row.fingerprint is None):
        write_facts(row, facts, norms)
    if norms is not None:
        row.norms = norms
    row.seen_at = location.seen_at or row.seen_at
    locations.locate(session, row, location)
    if outcome == MOVED:
        gone = LocationRow.version_id == row.id, LocationRow.missing_since.is_not(None)
        session.execute(delete(LocationRow).where(*gone))
    if current is not None and current is not row:
        _leave(session, current, row)
    search.index(session, row.adapter_id)
    return row, outcome


def move(session: Session, before: Location, after: Location) -> bool:
    """Say that the file at one place is now at another; false when nothing is recorded there, or something here."""
    row = session.scalar(select(LocationRow).where(_at(before)))
    if row is None or session.scalar(select(LocationRow.id).where(_at(after))) is not None:
        return False
    row.root, row.relpath, row.missing_since = after.root, after.relpath, None
    for field in ("size", "mtime_ns", "inode", "device"):
        setattr(row, field, getattr(after, field))
    row.seen_at = after.seen_at or row.seen_at
    session.flush()
    search.index(session, session.get_one(Version, row.version_id).adapter_id)
    return True


def _at(location: Location) -> ColumnElement[bool]:
    return and_(LocationRow.root == location.root, LocationRow.relpath == location.relpath)


def _lying(session: Session, location: Location) -> Version | None:
    owner = select(Version).join(LocationRow, LocationRow.version_id == Version.id)
    return session.scalar(owner.where(_at(location)))


def _unread(session: Session, current: Version | None, facts: Facts, names: Iterable[str]) -> tuple[Version, str]:
    """A file of which only the header was read: what lay here unread is read again, what was hashed is left alone."""
    if current is None:
        return _named(session, facts, names)
    if not current.hashed:
        write_facts(current, facts, None)
    return current, SAME


def _identified(
    session: Session, current: Version | None, location: Location, facts: Facts, names: Iterable[str]
) -> tuple[Version, str]:
    if current is not None:
        mine = Version.adapter_id == current.adapter_id, Version.file_sha256 == facts.file_sha256
        twin = session.scalar(select(Version).where(*mine))
        if twin is not None:
            _revive(session, twin)
            return twin, SAME if not current.hashed else REPLACED
    if current is None or not current.hashed:
        lost = _lost(session, facts.file_sha256)
        if lost is not None:
            return lost, MOVED
    if current is None:
        return _named(session, facts, names)
    if not current.hashed:
        original = _without_place(session, facts.file_sha256, next(iter(names)))
        if original is not None:
            return original, SAME
        _identify(session, current, facts)
        return current, SAME
    row = versions.add(session, current.adapter.name, facts, norms=None, tags=(), notes="", stored=False)
    return row, REPLACED


def _lost(session: Session, sha256: str) -> Version | None:
    """The live version of this content that lay somewhere, and lies nowhere now."""
    places = LocationRow.version_id == Version.id
    was, there = exists().where(places), exists().where(places, LocationRow.missing_since.is_(None))
    known = select(Version).where(Version.file_sha256 == sha256, Version.deleted_at.is_(None)).order_by(Version.id)
    return session.scalar(known.where(was, ~there))


def _without_place(session: Session, sha256: str, name: str) -> Version | None:
    """The stored version of this content that is called as the file is, if no other file is known to be it."""
    there = exists().where(LocationRow.version_id == Version.id, LocationRow.missing_since.is_(None))
    mine = select(Version).join(Adapter, Adapter.id == Version.adapter_id).where(Adapter.name_key == name_key(name))
    return session.scalar(mine.where(Version.file_sha256 == sha256, Version.deleted_at.is_(None), ~there))


def _named(session: Session, facts: Facts, names: Iterable[str]) -> tuple[Version, str]:
    """The version of this content under the first name that has it, or a new one under the first that is free."""
    for name in names:
        adapter_id = session.scalar(select(Adapter.id).where(Adapter.name_key == name_key(name)))
        if adapter_id is None:
            return versions.add(session, name, facts, norms=None, tags=(), notes="", stored=False), NEW
        mine = Version.adapter_id == adapter_id, Version.file_sha256 == facts.file_sha256
        row = session.scalar(select(Version).where(*mine))
        if row is not None:
            _revive(session, row)
            return row, SAME
    raise InvalidError("every name that was tried is taken")


def _identify(session: Session, row: Version, facts: Facts) -> None:
    """Give a version its true identity; what was made from it learns it too."""
    session.execute(update(ParentRow).where(ParentRow.sha256 == row.file_sha256).values(sha256=facts.file_sha256))
    write_facts(row, facts, None)
    session.flush()


def _revive(session: Session, row: Version) -> None:
    if row.deleted_at is not None:
        row.deleted_at = None
        trash.choose_latest(session, row.adapter_id)


def _leave(session: Session, left: Version, row: Version) -> None:
    """A version whose file turned out to be another's: one that was never hashed is no more, and hands over what it has."""
    if left.hashed or session.scalar(select(LocationRow.id).where(LocationRow.version_id == left.id)) is not None:
        search.index(session, left.adapter_id)
        return
    versions.add_tags(session, row, [tag.tag for tag in left.tags])
    row.notes = row.notes or left.notes
    write_overrides(row, {**left.overrides, **row.overrides})
    session.execute(
        update(ParentRow)
        .where(ParentRow.sha256 == left.file_sha256)
        .values(sha256=row.file_sha256, parent_version_id=row.id)
    )
    if left.adapter_id == row.adapter_id:
        session.execute(update(Alias).where(Alias.version_id == left.id).values(version_id=row.id))
    adapter_id = left.adapter_id
    session.flush()
    session.execute(delete(Version).where(Version.id == left.id))
    session.expire_all()
    trash.choose_latest(session, adapter_id)
    if session.scalar(select(Version.id).where(Version.adapter_id == adapter_id)) is None:
        session.execute(delete(Adapter).where(Adapter.id == adapter_id))
    else:
        search.index(session, adapter_id)
