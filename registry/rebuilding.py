"""Make a lost or damaged SQLite database again from its journal. What was there is set aside, never deleted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from registry import journal, schema, sqlite_file
from registry.engine import open_sqlite
from registry.errors import DamagedError, NewerSchemaError
from registry.home import DATABASE


@dataclass(frozen=True)
class Rebuilt:
    """`complete`: the journal was there, so that all names, tags and notes are back, not only what blobs tell."""

    database: Path
    set_aside: Path | None
    complete: bool
    adapters: int


def rebuild(home: Path, *, timeout: float = 30.0) -> Rebuilt:
    """The database of a home, made again; empty where there is no journal. Open it, and `rebuild_search`, afterwards.

    The new one takes its name when it is whole, so an interrupted rebuild is begun again.

    Raises:
        NewerSchemaError: a newer lorahub wrote the journal.
        LockedError: another process makes or upgrades the database.
    """
    path = home / DATABASE
    home.mkdir(parents=True, exist_ok=True)
    database = open_sqlite(path, timeout=timeout)
    try:
        with schema.locked(database, path):
            try:
                revision, number, adapters = journal.read(home / journal.NAME)
                complete = True
            except DamagedError:
                revision, number, adapters, complete = schema.REVISIONS[-1], 0, {}, False
            if revision not in schema.REVISIONS:
                raise NewerSchemaError(
                    f"{home / journal.NAME} has schema {revision[:40]!a}, this lorahub knows {schema.REVISIONS[-1]} and "
                    "older: run `pip install --upgrade lorahub-toolkit`"
                )
            fresh = path.with_name(f"{path.name}.new-rebuilt")
            fresh.unlink(missing_ok=True)
            schema.make_file(fresh, timeout, revision)
            _fill(fresh, timeout, number, adapters)
            aside = sqlite_file.set_aside(path)
            fresh.rename(path)
            sqlite_file.sync(home)
    finally:
        database.close()
    return Rebuilt(path, aside, complete, len(adapters))


def _fill(path: Path, timeout: float, number: int, adapters: dict[int, journal.Rows]) -> None:
    database = open_sqlite(path, timeout=timeout, foreign_keys=False)
    try:
        with database.writing() as session:
            connection = session.connection()
            journal.restore(connection, number, adapters)
            connection.exec_driver_sql(
                "UPDATE parent SET parent_version_id = NULL WHERE parent_version_id NOT IN (SELECT id FROM version)"
            )
    finally:
        database.close()
