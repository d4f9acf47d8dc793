"""Add versions, say what is not so about them, tag them. An override is never undone by a new detection.

An override answers what was found. So it stays while the same file is read again, and passes to the next version of
the name as long as the same is found there; tags pass on always.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from registry import search, trash
from registry.errors import ConflictError, InvalidError
from registry.models import Adapter, Tag, Version
from registry.names import adapter_name, name_key, tag_name
from registry.records import OVERRIDABLE, Facts, RunSettings, check_kind
from registry.resolve import adapter_row, version_row
from registry.rows import found, write_facts, write_overrides


def add(
    session: Session,
    name: str,
    facts: Facts,
    *,
    norms: Mapping[str, float] | None,
    tags: Iterable[str],
    notes: str,
    stored: bool,
) -> Version:
    """The version of this name with this file, new or as it was; one from the trash comes back. Index it afterwards."""
    now = datetime.now(UTC)
    adapter = _adapter(session, adapter_name(name), now)
    same = Version.adapter_id == adapter.id, Version.file_sha256 == facts.file_sha256
    row = session.scalar(select(Version).where(*same)) if adapter.last_number else None
    if row is None:
        row = _new(session, adapter, facts, norms, set(tags), now)
    else:
        add_tags(session, row, tags)
        row.deleted_at = None
        trash.choose_latest(session, adapter.id)
    row.seen_at = now
    row.stored = row.stored or stored
    row.notes = notes or row.notes
    return row


def refresh(session: Session, reference: str, facts: Facts, norms: Mapping[str, float] | None) -> Version:
    """Replace what was found in the same file; raises ConflictError if it is another file."""
    row = version_row(session, reference)
    if row.file_sha256 != facts.file_sha256:
        raise ConflictError(
            f"{reference} is sha256:{row.file_sha256[:12]}, got facts of sha256:{facts.file_sha256[:12]}: "
            "add that file as a new version"
        )
    write_facts(row, facts, norms)
    row.seen_at = datetime.now(UTC)
    search.index(session, row.adapter_id)
    return row


def edit(session: Session, reference: str, said: Mapping[str, Any], notes: str | None, reset: Iterable[str]) -> Version:
    """Record overrides, forget those in `reset`, set the notes; raises InvalidError for an unknown field or kind."""
    row = version_row(session, reference)
    reset = set(reset)
    unknown = (reset | set(said)) - set(OVERRIDABLE)
    if unknown:
        raise InvalidError(f"expected a field among {', '.join(OVERRIDABLE)}, got {', '.join(sorted(unknown))}")
    if said.get("base") == "":
        raise InvalidError("expected the name of a base, got an empty one: to forget an override, reset it")
    if "kind" in said:
        check_kind(said["kind"])
    plain = {key: asdict(value) if isinstance(value, RunSettings) else value for key, value in said.items()}
    kept = {key: value for key, value in row.overrides.items() if key not in reset}
    write_overrides(row, kept | plain)
    if notes is not None:
        row.notes = notes
    search.index(session, row.adapter_id)
    return row


def tag(session: Session, reference: str, tags: Iterable[str]) -> Version:
    """Put tags on a version; those it has already stay."""
    row = version_row(session, reference)
    add_tags(session, row, tags)
    search.index(session, row.adapter_id)
    return row


def untag(session: Session, reference: str, tags: Iterable[str]) -> Version:
    """Take tags off a version; those it does not have are no error."""
    row = version_row(session, reference)
    session.execute(delete(Tag).where(Tag.version_id == row.id, Tag.tag.in_([tag_name(tag) for tag in tags])))
    search.index(session, row.adapter_id)
    return row


def rename(session: Session, old: str, new: str) -> None:
    """Give an adapter another name, aliases and all; raises ConflictError if another adapter has it."""
    adapter = adapter_row(session, adapter_name(old))
    new = adapter_name(new)
    taken = session.scalar(select(Adapter).where(Adapter.name_key == name_key(new), Adapter.id != adapter.id))
    if taken is not None:
        raise ConflictError(
            f"cannot rename {adapter.name!r} to {new!r}: {taken.name!r} exists; purge or rename it first"
        )
    adapter.name, adapter.name_key = new, name_key(new)
    search.index(session, adapter.id)


def add_tags(session: Session, row: Version, tags: Iterable[str]) -> None:
    """Insert the tags that are not there."""
    there = set(session.scalars(select(Tag.tag).where(Tag.version_id == row.id)))
    for wanted in sorted({tag_name(tag) for tag in tags} - there):
        session.add(Tag(version_id=row.id, tag=wanted))
    session.flush()


def _adapter(session: Session, name: str, now: datetime) -> Adapter:
    row = session.scalar(select(Adapter).where(Adapter.name_key == name_key(name)))
    if row is None:
        row = Adapter(name=name, name_key=name_key(name), created_at=now, last_number=0)
        session.add(row)
        session.flush()
    return row


def _new(
    session: Session,
    adapter: Adapter,
    facts: Facts,
    norms: Mapping[str, float] | None,
    tags: set[str],
    now: datetime,
) -> Version:
    before = None
    if adapter.last_number:
        before = session.scalar(select(Version).where(Version.adapter_id == adapter.id, Version.latest))
    adapter.last_number += 1
    row = Version(adapter_id=adapter.id, adapter=adapter, number=adapter.last_number, overrides={}, notes="")
    row.latest, row.stored, row.created_at, row.seen_at = True, False, now, now
    write_facts(row, facts, norms)
    if before is not None:
        was, now_found = found(before), found(row)
        write_overrides(row, {key: value for key, value in before.overrides.items() if was[key] == now_found[key]})
        tags |= {tag.tag for tag in before.tags}
        before.latest = False
        session.flush()  # before the insert: only one version of an adapter may be the latest
    session.add(row)
    session.flush()
    session.add_all(Tag(version_id=row.id, tag=tag) for tag in {tag_name(tag) for tag in tags})
    return row
