"""Look after the registry: what state is it in, is it whole, back it up, collect what nothing refers to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import delete, func, select

from registry import listing, schema, search, sqlite_file
from registry.blobs import Blob
from registry.connected import Connected
from registry.errors import DamagedError, InvalidError
from registry.models import SearchText, Version
from registry.records import Info, VersionRecord
from registry.rows import chunks

GRACE = timedelta(days=14)


class Maintenance(Connected):
    """The verbs that keep a registry healthy."""

    def info(self) -> Info:
        """The database, its schema, how it is searched, and how much is in it."""
        path, journal, notes = self._database.path, None, []
        with self._reading() as session:
            if path is None:
                how = "tsvector"
            else:
                how = "fts5" if search.has_index(session) else "like"
                journal = str(session.connection().exec_driver_sql("PRAGMA journal_mode").scalar())
                network = sqlite_file.network_type(path)
                if journal != "wal":
                    notes.append(f"journal mode is {journal}, not wal: readers wait for writers")
                if network:
                    notes.append(f"the database lies on {network}: use it from one machine at a time, or PostgreSQL")
            if self.read_only:
                notes.append("this user may only read it")
            rows = select(func.count()).select_from(Version)
            everything = session.scalar(rows) or 0
            adapters = session.scalar(rows.where(Version.latest)) or 0
            trashed = session.scalar(rows.where(Version.deleted_at.is_not(None))) or 0
        return Info(
            database=self._database.label,
            schema=schema.REVISIONS[-1],
            journal=journal,
            search=how,
            read_only=self.read_only,
            adapters=adapters,
            versions=everything - trashed,
            trashed=trashed,
            notes=tuple(notes),
        )

    def check(self) -> tuple[str, ...]:
        """What is wrong with the database, one line each; empty when all is well. Blobs are looked for, not read."""
        try:
            found = [] if self._database.path is None else self._integrity()
            found += [f"{record.reference} has no blob {record.file_sha256[:12]}" for record in self.without_blob()]
        except DamagedError as error:
            return (str(error),)
        return tuple(found)

    def without_blob(self) -> tuple[VersionRecord, ...]:
        """Versions, in the trash too, whose blob should be in the store and is not."""
        there = {blob.sha256 for blob in self.blobs.blobs()}
        with self._reading() as session:
            stored = select(Version.id, Version.file_sha256).where(Version.stored)
            lost = [id_ for id_, sha256 in session.execute(stored) if sha256 not in there]
            return tuple(
                record
                for ids in chunks(lost)
                for record in listing.versions(session, select(Version).where(Version.id.in_(ids)))
            )

    def backup(self) -> Path:
        """A consistent copy of the live SQLite database, in `backups/` of the home.

        Raises:
            InvalidError: the registry is on PostgreSQL, which has pg_dump.
            UnavailableError: there is no room.
        """
        if self._database.path is None:
            raise InvalidError(f"{self._database.label} is backed up with pg_dump")
        return sqlite_file.backup(self._database.path, self.home / "backups", "backup")

    def rebuild_search(self) -> int:
        """Write the words of all adapters again; returns how many are findable."""
        with self._writing() as session:
            if self._database.path is not None and search.has_index(session):
                # First: FTS5 is told the old words of a row that goes, and must know them.
                session.connection().exec_driver_sql("INSERT INTO search_index (search_index) VALUES ('rebuild')")
            session.execute(delete(SearchText))
            ids = session.scalars(select(Version.adapter_id).where(Version.latest)).all()
            for adapter_id in ids:
                search.index(session, adapter_id)
            return len(ids)

    def collect(self, *, grace: timedelta = GRACE, dry_run: bool = False) -> tuple[Blob, ...]:
        """Delete blobs no version refers to, and unfinished copies, both only if older than `grace`.

        Blobs of versions in the trash are kept until these are purged. A blob whose age the store does not tell is
        never deleted. Deletion excludes writers, so a blob that is being registered is seen to be in use.
        """
        before = datetime.now(UTC) - grace
        with self._reading() as session:
            used = set(session.scalars(select(Version.file_sha256).where(Version.stored)))
        unused = [blob for blob in self.blobs.blobs() if blob.sha256 not in used and _older(blob, before)]
        if dry_run:
            return tuple(unused)
        gone: list[Blob] = []
        for chunk in chunks(unused, 100):
            with self._writing() as session:
                hashes = [blob.sha256 for blob in chunk]
                taken = select(Version.file_sha256).where(Version.stored, Version.file_sha256.in_(hashes))
                used = set(session.scalars(taken))
                for blob in chunk:
                    if blob.sha256 not in used and _older(self.blobs.stat(blob.sha256), before):
                        self.blobs.delete(blob.sha256)
                        gone.append(blob)
        self.blobs.sweep(before)
        return tuple(gone)

    def _integrity(self) -> list[str]:
        with self._reading() as session:
            connection = session.connection()
            pages = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check")]
            rows = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        dangling = [f"{table} row {row} refers to no {parent}" for table, row, parent, _ in rows]
        return [line for line in pages if line != "ok"] + dangling


def _older(blob: Blob | None, before: datetime) -> bool:
    return blob is not None and blob.modified is not None and blob.modified < before
