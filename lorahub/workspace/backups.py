"""The whole registry in one file, and back: versions, numbers, history, trash and all.

A backup is a consistent snapshot of the database, whoever writes meanwhile, with or without the files of the store. A
restore checks the backup first, keeps what the registry holds now, and then replaces it in one transaction.
"""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from lorahub.errors import LorahubError, UsageError, VerificationError
from lorahub.workspace.bundle import Reader, reading, writing
from lorahub.workspace.core import Workspace
from lorahub.workspace.errors import translated
from lorahub.workspace.manifest import blob_name, tool
from lorahub.workspace.plain import from_plain, to_plain
from lorahub.workspace.settings import settings
from registry import Registry
from registry.home import DATABASE, JOURNAL

FORMAT = "lorahub-backup"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Backup:
    """A backup that was made: how many versions (in the trash too) and files it holds."""

    path: Path
    versions: int
    blobs: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A registry that was put back. `kept` holds what it was before, None if that could not be read or was nothing."""

    path: Path
    versions: int
    blobs: int
    kept: Path | None
    without_file: int
    """Versions whose file should be in the store and is not."""


@dataclass(frozen=True, kw_only=True)
class _Manifest:
    format: str
    schema: int
    tool: str
    made_at: datetime
    versions: int
    database_sha256: str
    database_size: int
    blobs: Mapping[str, int]


@translated()
def backup(
    workspace: Workspace,
    path: str | Path | None = None,
    *,
    store: bool = False,
    force: bool = False,
    dry_run: bool = False,
) -> Backup:
    """Write the registry into one file, by default in `backups/` of its home; `store`: with the files in the store.

    Raises UsageError on PostgreSQL, which has pg_dump, ConflictError if `path` exists, VerificationError for a damaged
    file.
    """
    registry = workspace.registry
    if workspace.settings.database_url is not None:
        raise UsageError(
            "a registry on PostgreSQL is backed up with pg_dump; `lorahub export --all` takes its files too"
        )
    now = datetime.now(UTC)
    path = Path(path) if path else registry.home / "backups" / f"lorahub-{now:%Y%m%dT%H%M%S%f}.tar"
    if dry_run:
        return _planned(workspace, path, store)
    snapshot = registry.backup()
    try:
        with snapshot.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        size = snapshot.stat().st_size
        with TemporaryDirectory() as folder:
            shutil.copyfile(snapshot, Path(folder) / DATABASE)
            with Registry.open(Path(folder)) as copied:
                versions, stored = _content(copied)
        blobs = stored if store else {}
        manifest = _Manifest(
            format=FORMAT,
            schema=SCHEMA,
            tool=tool(),
            made_at=now,
            versions=versions,
            database_sha256=sha256,
            database_size=size,
            blobs=blobs,
        )
        with writing(path, force=force) as writer:
            writer.add_manifest(to_plain(manifest))
            writer.add(DATABASE, snapshot, sha256, size)
            for blob, length in blobs.items():
                writer.add(blob_name(blob), registry.blobs.path(blob), blob, length)
    finally:
        snapshot.unlink()
    return Backup(path=path, versions=versions, blobs=len(blobs), size=size + sum(blobs.values()))


@translated()
def restore_backup(
    path: str | Path,
    *,
    home: Path | str | None = None,
    store: str | None = None,
    dry_run: bool = False,
) -> Restored:
    """Make the registry what it was when the backup at `path` was made; files in the store are added, none is deleted.

    A damaged database is set aside. Raises VerificationError, and changes nothing, for a backup that is not whole, and
    UsageError on PostgreSQL.
    """
    path = Path(path)
    if settings(home=home, store=store).database_url is not None:
        raise UsageError("a registry on PostgreSQL is restored with pg_restore")
    with reading(path) as bundle, TemporaryDirectory() as folder:
        manifest = _manifest(bundle)
        bundle.verify(DATABASE, manifest.database_sha256)
        for sha256 in manifest.blobs:
            bundle.verify(blob_name(sha256), sha256)
        fresh = Path(folder) / "home" / DATABASE
        fresh.parent.mkdir()
        with fresh.open("xb") as stream:
            shutil.copyfileobj(bundle.open(DATABASE), stream)
        _check(path, fresh)
        if dry_run:
            return Restored(path=path, versions=manifest.versions, blobs=len(manifest.blobs), kept=None, without_file=0)
        with _current(home, store) as workspace:
            registry = workspace.registry
            for sha256 in manifest.blobs:
                registry.blobs.put(bundle.open(blob_name(sha256)), expect=sha256)
            kept = registry.backup()
            _replace(registry, fresh)
    with Workspace.open(home, store=store) as workspace:
        without = workspace.registry.without_blob()
    return Restored(
        path=path, versions=manifest.versions, blobs=len(manifest.blobs), kept=kept, without_file=len(without)
    )


def _content(registry: Registry) -> tuple[int, dict[str, int]]:
    """How many versions a registry holds, in the trash too, and the size of each file they have in the store."""
    records = [*registry.find(), *registry.trash()]
    stored = {record.file_sha256: record.size for record in records if record.stored}
    return len(records), dict(sorted(stored.items()))


def _planned(workspace: Workspace, path: Path, store: bool) -> Backup:
    database = Path(workspace.registry.info().database)
    versions, stored = _content(workspace.registry)
    blobs = stored if store else {}
    size = database.stat().st_size + sum(blobs.values())
    return Backup(path=path, versions=versions, blobs=len(blobs), size=size)


def _manifest(bundle: Reader) -> _Manifest:
    bundle.check_kind(FORMAT, SCHEMA, maker="backup", takers={"lorahub-archive": "import"})
    manifest = from_plain(_Manifest, bundle.manifest, "manifest")
    sizes = {DATABASE: manifest.database_size}
    bundle.expect(sizes | {blob_name(sha256): size for sha256, size in manifest.blobs.items()})
    return manifest


def _check(path: Path, database: Path) -> None:
    """Raise unless the database is whole; one of an older schema is brought up to date, here and not in place."""
    with Registry.open(database.parent) as registry:
        # The store beside it is empty, and must be: only what is wrong with the database itself counts here.
        lines = [line for line in registry.check() if " has no blob " not in line]
    if lines:
        raise VerificationError(f"{path} holds a damaged database: {lines[0]}")


def _current(home: Path | str | None, store: str | None) -> Workspace:
    try:
        return Workspace.open(home, store=store)
    except VerificationError:  # damaged: set it aside, nothing of it is deleted
        used = settings(home=home, store=store)
        return Workspace(Registry.open(used.home, store=used.store, fresh=True), used)


def _replace(registry: Registry, database: Path) -> None:
    """SQLite copies one database over another in one transaction, which others that have it open see as any other.

    The journal beside it is of what was there before. It is set aside, and the number of its last transaction is not
    used again, so that it cannot be taken for that of the restored database.
    """
    live, journal = registry.home / DATABASE, registry.home / JOURNAL
    try:
        with (
            closing(sqlite3.connect(database)) as source,
            closing(sqlite3.connect(live, timeout=30)) as target,
        ):
            numbers = [connection.execute("PRAGMA user_version").fetchone()[0] for connection in (source, target)]
            source.execute(f"PRAGMA user_version = {max(numbers) + 1}")
            if journal.exists():
                journal.replace(journal.with_name(f"{JOURNAL}.before"))
            source.backup(target)
    except sqlite3.Error as error:
        raise LorahubError(f"cannot restore to {live} ({error}): the database was not changed") from error
