"""Bring a database's tables to this code's revision: create, upgrade, or refuse.

Alembic is imported only when the stored revision is not ours. A change happens in one transaction, after a backup,
under a lock and a second look at the revision; with foreign keys off, because SQLite rebuilds a table by dropping it,
and a cascade would then delete the children.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from sqlalchemy import Connection, inspect, text

from registry import sqlite_file
from registry.engine import Database, open_sqlite
from registry.errors import DamagedError, LockedError, NewerSchemaError, NotFoundError, ReadOnlyError

REVISIONS = ("0001",)  # oldest first; the last is what this code reads and writes
VERSION_TABLE = "lorahub_alembic_version"


def migrations_folder() -> Path:
    """Where the migrations are: beside this module in an installed wheel, beside the package in a checkout."""
    here = Path(__file__).resolve().parent
    inside = here / "migrations"
    return inside if inside.is_dir() else here.parent / "migrations"


def ensure(database: Database) -> Path | None:
    """Make the schema current; returns the backup when an older one was upgraded.

    Raises:
        NewerSchemaError: a newer lorahub wrote it.
        DamagedError: the file is no intact database, or tables are there but their revision is not.
        LockedError: another process has been upgrading it for longer than the timeout.
        ReadOnlyError: it must be upgraded, and cannot be.
        NotFoundError: there is none, and none can be made.
    """
    if database.path is not None:
        return _ensure_file(database, database.path)
    with database.translated():
        if stored_revision(database) != REVISIONS[-1]:
            with database.writing() as session:  # the writers' lock; the second look is inside
                _migrate(session.connection(), database)
    return None


def stored_revision(database: Database) -> str | None:
    """The revision of the tables that are there, None if there are no tables.

    Raises:
        NewerSchemaError: it is not one this code knows.
        DamagedError: there are tables of ours without a revision.
    """
    with database.reading() as session:
        return _revision(session.connection(), database)


def _ensure_file(database: Database, path: Path) -> Path | None:
    if not path.exists():
        if database.read_only:
            raise NotFoundError(f"no registry at {path}, and this user cannot make one: set LORAHUB_HOME elsewhere")
        with locked(database, path):
            if not path.exists():
                _create_file(database, path)
    sqlite_file.check_file(path)
    stored = stored_revision(database)
    if stored == REVISIONS[-1]:
        return None
    if database.read_only:
        raise ReadOnlyError(f"{path} has schema {stored}, {REVISIONS[-1]} is needed: run `lorahub db upgrade` as owner")
    with locked(database, path):
        stored = stored_revision(database)
        if stored == REVISIONS[-1]:
            return None
        kept = sqlite_file.backup(path, path.parent / "backups", f"schema-{stored}")
        _migrate_file(path, database.timeout)
    return kept


@contextmanager
def locked(database: Database, path: Path) -> Iterator[None]:
    """Exclude other processes that would create, upgrade or replace this file; raises LockedError."""
    try:
        with FileLock(path.with_name(f"{path.name}.lock"), timeout=database.timeout):
            yield
    except Timeout:
        raise LockedError(
            f"{path} has been created or upgraded by another process for {database.timeout:g} s: try again"
        ) from None


def _create_file(database: Database, path: Path) -> None:
    # Made under another name and renamed when whole: an empty file under the real name is therefore always damage.
    for left_over in path.parent.glob(f"{path.name}.new-*"):
        left_over.unlink()
    fresh = path.with_name(f"{path.name}.new-{os.getpid()}")
    with database.translated():
        make_file(fresh, database.timeout)
    fresh.rename(path)
    sqlite_file.sync(path.parent)


def make_file(path: Path, timeout: float, revision: str | None = None) -> None:
    """A new database with empty tables, on the disk."""
    path.touch()
    _migrate_file(path, timeout, revision)
    sqlite_file.use_journal(path)
    sqlite_file.sync(path)


def _migrate_file(path: Path, timeout: float, revision: str | None = None) -> None:
    database = open_sqlite(path, timeout=timeout, foreign_keys=False)
    try:
        with database.writing() as session:
            connection = session.connection()
            _migrate(connection, database, revision)
            broken = connection.execute(text("PRAGMA foreign_key_check")).first()
            if broken is not None:
                raise DamagedError(f"{path} not upgraded: {broken[0]} row {broken[1]} would lose its {broken[2]}")
    finally:
        database.close()


def _migrate(connection: Connection, database: Database, revision: str | None = None) -> None:
    revision = revision or REVISIONS[-1]
    if _revision(connection, database) == revision:
        return
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection, "version_table": VERSION_TABLE})
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    command.upgrade(config, revision)


def _revision(connection: Connection, database: Database) -> str | None:
    tables = inspect(connection)
    if not tables.has_table(VERSION_TABLE):
        if tables.has_table("adapter") and tables.has_table("version"):
            raise DamagedError(f"{database.label} has tables but no {VERSION_TABLE}: restore a backup")
        return None
    rows = [str(row[0]) for row in connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}"))]
    if len(rows) != 1:
        raise DamagedError(
            f"{database.label} has {len(rows)} revisions in {VERSION_TABLE}, expected 1: restore a backup"
        )
    if rows[0] not in REVISIONS:
        raise NewerSchemaError(
            f"{database.label} has schema {rows[0]}, this lorahub knows {REVISIONS[-1]} and older: "
            "run `pip install --upgrade lorahub-toolkit`"
        )
    return rows[0]
