"""From a reference to the rows it names. Names match in any case; what is in the trash only on request."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.errors import AmbiguousError, NotFoundError
from registry.models import Adapter, Alias, Version
from registry.names import name_key
from registry.references import Reference, parse_reference

_SHOWN = 20


def adapter_row(session: Session, name: str) -> Adapter:
    """The adapter of that name, live or not; raises NotFoundError."""
    row = session.scalar(select(Adapter).where(Adapter.name_key == name_key(name)))
    if row is None:
        raise NotFoundError(f"no adapter is called {name!r}: see `lorahub list`, or add it")
    return row


def version_row(session: Session, text: str, *, trashed: bool = False) -> Version:
    """The one version a reference names; a bare name means its newest version.

    Raises:
        InvalidError: the reference is malformed.
        NotFoundError: nothing matches, or only something in the trash.
        AmbiguousError: several versions match a hash prefix.
    """
    return max(version_rows(session, text, trashed=trashed), key=lambda row: row.number)


def version_rows(session: Session, text: str, *, trashed: bool = False) -> list[Version]:
    """All versions a reference names, at least one: a bare name means every version of it, live or in the trash.

    Raises:
        InvalidError: the reference is malformed.
        NotFoundError: nothing matches, or only something on the other side.
        AmbiguousError: several versions match a hash prefix.
    """
    reference = parse_reference(text)
    rows = _matching(session, reference)
    wanted = [row for row in rows if (row.deleted_at is not None) is trashed]
    if reference.sha256 is not None and len(wanted) > 1:
        names = tuple(f"{row.adapter.name}:{row.number}" for row in wanted)
        shown = ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
        raise AmbiguousError(f"{reference} is {len(names)} versions: name one of {shown}", names)
    if wanted:
        return wanted
    if rows and not trashed:
        raise NotFoundError(f"{reference} is in the trash: run `lorahub restore {reference}`")
    if rows:
        raise NotFoundError(f"{reference} is not in the trash: run `lorahub remove {reference}` first")
    raise NotFoundError(f"no version matches {reference}: see `lorahub list`")


def _matching(session: Session, reference: Reference) -> list[Version]:
    query = select(Version).order_by(Version.adapter_id, Version.number)
    if reference.sha256 is not None:
        prefix = reference.sha256  # a range, because only some collations let LIKE use the index
        matches = Version.file_sha256.between(prefix, prefix + "g"), Version.file_sha256.startswith(prefix)
        return list(session.scalars(query.where(*matches, Version.hashed)))
    adapter = adapter_row(session, reference.name or "")
    query = query.where(Version.adapter_id == adapter.id)
    if reference.number is not None:
        query = query.where(Version.number == reference.number)
    if reference.alias is not None:
        query = query.join(Alias, Alias.version_id == Version.id).where(
            Alias.adapter_id == adapter.id, Alias.alias == reference.alias
        )
    return list(session.scalars(query))
