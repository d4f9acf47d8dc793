"""The registry: one database and one blob store, behind verbs that are each one transaction.

A verb happens wholly or not at all; `transaction()` makes one of several. References are `NAME` (its newest version),
`NAME:VERSION`, `NAME@ALIAS` or `sha256:PREFIX`. Every verb may raise InvalidError for malformed input, NotFoundError
and AmbiguousError for a reference, LockedError, ReadOnlyError, UnavailableError and DamagedError for the database;
docstrings name what else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry import aliases, lineage, listing, locations, search, trash, validations, versions
from registry.errors import ConflictError
from registry.home import default_home
from registry.maintenance import Maintenance
from registry.models import Version
from registry.places import Places
from registry.records import (
    AdapterRecord,
    AliasChange,
    Facts,
    Lineage,
    Location,
    Parent,
    Recipe,
    RunSettings,
    Validation,
    VersionRecord,
)
from registry.remotes import Remotes
from registry.resolve import version_row
from registry.rows import version_record
from registry.sketches import Sketches

__all__ = ["Registry", "default_home"]


class Registry(Maintenance, Places, Remotes, Sketches):
    """A catalogue of adapters; open it with `Registry.open`."""

    def add_version(
        self,
        name: str,
        facts: Facts,
        *,
        norms: Mapping[str, float] | None = None,
        tags: Iterable[str] = (),
        notes: str = "",
        stored: bool = False,
        location: Location | None = None,
        parents: Iterable[Parent] = (),
        recipe: Recipe | None = None,
    ) -> VersionRecord:
        """Record a file as the next version of a name; a file the name has already keeps its version and its facts.

        A version that is new has `created_at == seen_at`. `stored` says that the file is in the blob store: put it
        there first. A version in the trash comes back. `norms` are per layer, kept in float32.

        Raises:
            ConflictError: the blob is not in the store, or a parent is not the file it is said to be.
        """
        with self._writing() as session:
            if stored and self.blobs.stat(facts.file_sha256) is None:  # no collection can run while we write
                raise ConflictError(
                    f"{name} needs blob {facts.file_sha256[:12]} in the store first: add the file again"
                )
            row = versions.add(session, name, facts, norms=norms, tags=tags, notes=notes, stored=stored)
            if location is not None:
                locations.locate(session, row, location)
            lineage.record(session, row, parents, recipe)
            search.index(session, row.adapter_id)
            return _record(session, row)

    def refresh(self, reference: str, facts: Facts, *, norms: Mapping[str, float] | None = None) -> VersionRecord:
        """Replace what was found in a file by a newer reading of the same file; overrides stay in force.

        Raises:
            ConflictError: the facts are those of another file.
        """
        with self._writing() as session:
            return _record(session, versions.refresh(session, reference, facts, norms))

    def get(self, reference: str) -> VersionRecord:
        """The version a reference names."""
        with self._reading() as session:
            return version_record(version_row(session, reference))

    def versions(self, name: str) -> tuple[VersionRecord, ...]:
        """All versions of a name, in the trash too, oldest first."""
        with self._reading() as session:
            return listing.all_versions(session, name)

    def norms(self, reference: str) -> Mapping[str, float]:
        """Layer name -> norm, in float32; empty if none were recorded."""
        with self._reading() as session:
            return version_row(session, reference).norms or {}

    def find(
        self, *, file_sha256: str | None = None, data_sha256: str | None = None, fingerprint: str | None = None
    ) -> tuple[VersionRecord, ...]:
        """Live versions with all of these hashes; with none of them given, every live version."""
        query = select(Version).where(Version.deleted_at.is_(None))
        hashes = {"file_sha256": file_sha256, "data_sha256": data_sha256, "fingerprint": fingerprint}
        query = query.filter_by(**{field: value for field, value in hashes.items() if value is not None})
        with self._reading() as session:
            return listing.versions(session, query)

    def list(
        self,
        *,
        base: str | None = None,
        rank: listing.Rank | None = None,
        kind: str | None = None,
        tag: str | None = None,
        format: str | None = None,
        sort: str | None = None,
        limit: int | None = None,
    ) -> tuple[AdapterRecord, ...]:
        """Adapters whose newest version passes all filters.

        `rank` is one rank or an inclusive range, its ends may be None. `sort` is one of `listing.SORTS`, descending
        with a `-` before it; names come in the order of their letters.
        """
        with self._reading() as session:
            return listing.adapters(
                session, query=None, base=base, rank=rank, kind=kind, tag=tag, format=format, sort=sort, limit=limit
            )

    def search(
        self,
        query: str,
        *,
        base: str | None = None,
        rank: listing.Rank | None = None,
        kind: str | None = None,
        tag: str | None = None,
        format: str | None = None,
        sort: str | None = None,
        limit: int | None = 50,
    ) -> tuple[AdapterRecord, ...]:
        """Like `list`, for adapters in whose names, tags, trigger words, notes and paths every word is found.

        Bare words match as prefixes, "quoted phrases" exactly; without `sort` the best matches come first.
        """
        with self._reading() as session:
            return listing.adapters(
                session, query=query, base=base, rank=rank, kind=kind, tag=tag, format=format, sort=sort, limit=limit
            )

    def names(self, prefix: str = "", limit: int | None = None) -> tuple[str, ...]:
        """Names of adapters that begin with `prefix`, in any case."""
        with self._reading() as session:
            return listing.names(session, prefix, limit)

    def duplicates(self, by: str = "fingerprint") -> tuple[tuple[VersionRecord, ...], ...]:
        """Groups of versions that share their `file_sha256`, `data_sha256` or `fingerprint`."""
        with self._reading() as session:
            return listing.duplicates(session, by)

    def unreachable(self) -> tuple[VersionRecord, ...]:
        """Versions whose file is neither in the store nor where it was last seen."""
        with self._reading() as session:
            return listing.unreachable(session)

    def edit(
        self,
        reference: str,
        *,
        base: str | None = None,
        kind: str | None = None,
        licence: str | None = None,
        trigger_words: Iterable[str] | None = None,
        run: RunSettings | None = None,
        notes: str | None = None,
        reset: Iterable[str] = (),
    ) -> VersionRecord:
        """Override what was found; None leaves a field alone, `reset` names fields whose override is forgotten."""
        words = None if trigger_words is None else [*trigger_words]
        fields: dict[str, Any] = {"base": base, "kind": kind, "licence": licence, "trigger_words": words, "run": run}
        said = {field: value for field, value in fields.items() if value is not None}
        with self._writing() as session:
            return _record(session, versions.edit(session, reference, said, notes, reset))

    def tag(self, reference: str, *tags: str) -> VersionRecord:
        """Put tags on a version."""
        with self._writing() as session:
            return _record(session, versions.tag(session, reference, tags))

    def untag(self, reference: str, *tags: str) -> VersionRecord:
        """Take tags off a version; those it does not have are no error."""
        with self._writing() as session:
            return _record(session, versions.untag(session, reference, tags))

    def rename(self, old: str, new: str) -> None:
        """Give an adapter another name, with all its versions; raises ConflictError if the name is taken."""
        with self._writing() as session:
            versions.rename(session, old, new)

    def alias(self, reference: str, alias: str, *, by: str | None = None) -> VersionRecord:
        """Point an alias at a version, and remember who did."""
        with self._writing() as session:
            return _record(session, aliases.point(session, reference, alias, by))

    def unalias(self, name: str, alias: str, *, by: str | None = None) -> None:
        """Remove an alias; its history stays."""
        with self._writing() as session:
            aliases.drop(session, name, alias, by)

    def alias_history(self, name: str, alias: str | None = None) -> tuple[AliasChange, ...]:
        """Where an alias, or each of an adapter's, pointed and when, oldest first."""
        with self._reading() as session:
            return aliases.history(session, name, alias)

    def remove(self, reference: str) -> tuple[VersionRecord, ...]:
        """Move a version, or with a bare name all of them, to the trash; raises ConflictError while it has an alias."""
        with self._writing() as session:
            return _records(session, trash.remove(session, reference))

    def trash(self) -> tuple[VersionRecord, ...]:
        """What is in the trash."""
        with self._reading() as session:
            return listing.versions(session, select(Version).where(Version.deleted_at.is_not(None)))

    def restore(self, reference: str) -> tuple[VersionRecord, ...]:
        """Bring a version, or with a bare name all of them, back from the trash."""
        with self._writing() as session:
            return _records(session, trash.restore(session, reference))

    def purge(self, reference: str | None = None, *, older_than: datetime | None = None) -> int:
        """Delete what is in the trash for good, blobs excepted (see `collect`); returns how many versions went."""
        with self._writing() as session:
            return trash.purge(session, reference, older_than)

    def parents(self, reference: str) -> tuple[Parent, ...]:
        """The terms a version was made from, in order."""
        with self._reading() as session:
            return lineage.parents(session, reference)

    def recipe(self, reference: str) -> Recipe | None:
        """How a version was made, None if that is not recorded."""
        with self._reading() as session:
            return lineage.recipe(session, reference)

    def lineage(self, reference: str, *, depth: int | None = None) -> Lineage:
        """All ancestors and descendants of a version's file, up to `depth` steps away."""
        with self._reading() as session:
            return lineage.family(session, reference, depth)

    def set_stored(self, reference: str, stored: bool) -> VersionRecord:
        """Say whether the blob store holds a version's file; raises ConflictError when it does not after all."""
        with self._writing() as session:
            row = version_row(session, reference)
            if stored and self.blobs.stat(row.file_sha256) is None:
                raise ConflictError(f"no blob {row.file_sha256[:12]} is in the store: add the file again")
            row.stored = stored
            return _record(session, row)

    def record_validations(self, reference: str, findings: Iterable[Validation]) -> None:
        """Record what checks found; each check's former findings on this version are replaced."""
        with self._writing() as session:
            validations.record(session, reference, findings)

    def validations(self, reference: str) -> tuple[Validation, ...]:
        """What checks found in a version."""
        with self._reading() as session:
            return validations.find(session, reference)


def _record(session: Session, row: Version) -> VersionRecord:
    session.flush()
    session.expire(row)
    return version_record(row)


def _records(session: Session, rows: Iterable[Version]) -> tuple[VersionRecord, ...]:
    return tuple(_record(session, row) for row in rows)
