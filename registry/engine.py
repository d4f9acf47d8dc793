"""Connections: one way to read, one way to write, the same promises on SQLite and PostgreSQL.

Readers see one snapshot from their first statement to their last. Writers are serialised (BEGIN IMMEDIATE on SQLite, an
advisory lock on PostgreSQL), so whatever a writer has checked still holds when it commits. Database errors leave as
the registry's own.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, StatementError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from registry.errors import (
    ConflictError,
    DamagedError,
    DeniedError,
    InvalidError,
    LockedError,
    ReadOnlyError,
    RegistryError,
    UnavailableError,
    UnreachableError,
)

WRITER_LOCK = 0x6C6F7261  # "lora": the advisory lock every writer of a PostgreSQL registry takes
_WRITE = "registry_write"


@dataclass(frozen=True)
class Database:
    """Where the registry's tables are, and how long to wait for a lock there. `path` is None on PostgreSQL."""

    engine: Engine
    label: str
    path: Path | None
    timeout: float
    read_only: bool

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session on one snapshot; raises the registry's errors."""
        with self.translated(), Session(self.engine) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session that excludes other writers and commits at the end; raises the registry's errors."""
        if self.read_only:
            raise ReadOnlyError(f"cannot write to {self.label}: this user may only read it")
        with self.translated():
            engine = self.engine.execution_options(**{_WRITE: True})
            with Session(engine, expire_on_commit=False) as session, session.begin():
                yield session

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn errors of SQLAlchemy and sqlite3 into the registry's own."""
        try:
            yield
        except StatementError as error:
            raise _translate(error, error.orig, self) from error
        except sqlite3.Error as error:
            raise _translate(error, error, self) from error

    def close(self) -> None:
        """Close all connections; the last one out folds SQLite's log into the database."""
        self.engine.dispose()


def open_sqlite(
    path: Path, *, timeout: float, foreign_keys: bool = True, watch: Callable[[Connection], None] | None = None
) -> Database:
    """The registry in a file; connects on first use. Foreign keys are off only while the schema changes.

    `watch` is called with a connection before a transaction that writes begins.
    """
    read_only = not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK))
    mode = "mode=rw"
    if read_only:
        # A reader of a WAL database writes the -shm file, unless it is told that nobody changes the database: true
        # while no log exists, that is while no writer has it open.
        log = path.with_name(f"{path.name}-wal")
        mode = "mode=ro" if log.exists() and log.stat().st_size else "mode=ro&immutable=1"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{quote(str(path))}?{mode}", uri=True, timeout=timeout, check_same_thread=False, isolation_level=None
        )
        try:
            connection.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")
            connection.execute("PRAGMA synchronous=NORMAL")
        except BaseException:
            connection.close()
            raise
        return connection

    engine = create_engine("sqlite:///registry", creator=connect)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # Left to itself the driver begins late and reads outside the transaction: updates are lost without an error.
        write = connection.get_execution_options().get(_WRITE)
        if write and watch is not None:
            watch(connection)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return Database(engine, str(path), path, timeout, read_only)


def open_server(url: str, *, timeout: float) -> Database:
    """The registry on a PostgreSQL server; connects on first use.

    Raises:
        InvalidError: the URL is not one of PostgreSQL with the psycopg driver.
    """
    address = _server_url(url)
    try:
        engine = create_engine(address, pool_pre_ping=True)
    except ImportError as error:
        raise InvalidError(f"{address.drivername} needs psycopg: pip install 'lorahub-toolkit[postgresql]'") from error

    @event.listens_for(engine, "connect")
    def connected(connection: object, record: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()  # type: ignore[attr-defined]
        cursor.execute(f"SET lock_timeout = {int(timeout * 1000)}")
        cursor.close()
        connection.commit()  # type: ignore[attr-defined]

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get(_WRITE):
            # Whatever the server's default: each statement after the lock sees all that the writer before committed.
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")
        else:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")

    return Database(engine, address.render_as_string(hide_password=True), None, timeout, False)


def _server_url(url: str) -> URL:
    try:
        address = make_url(url)
        address.get_dialect()
    except (ArgumentError, NoSuchModuleError):
        address = None
    if address is None or address.drivername not in ("postgresql+psycopg", "postgresql"):
        what = "an unreadable URL" if address is None else address.render_as_string(hide_password=True)
        raise InvalidError(f"expected a database URL postgresql+psycopg://USER@HOST/NAME, got {what}")
    return address.set(drivername="postgresql+psycopg")


def _translate(error: Exception, cause: BaseException | None, database: Database) -> RegistryError:
    text = " ".join(str(cause if cause is not None else error).split())
    where = database.label
    if isinstance(cause, sqlite3.Error):
        kind = _SQLITE.get(getattr(cause, "sqlite_errorcode", 0) & 0xFF)
    elif isinstance(error, DBAPIError):
        state = getattr(cause, "sqlstate", None) or "08000"
        kind = _POSTGRES.get(state, _POSTGRES.get(state[:2]))
    else:
        return InvalidError(f"a fact cannot be stored in {where}: {text}")
    if kind is LockedError:
        return LockedError(f"{where} is locked by another process for more than {database.timeout:g} s: try again")
    if kind is DamagedError:
        return DamagedError(f"{where} is damaged ({text}): run `lorahub db rebuild`, or restore a backup")
    if kind is ReadOnlyError:
        return ReadOnlyError(f"cannot write to {where} ({text}): check its permissions")
    if kind is UnreachableError:
        return UnreachableError(f"{where} cannot be reached ({text}): check the server, then try again")
    if kind is DeniedError:
        return DeniedError(f"{where} refuses the credentials ({text})")
    if kind is UnavailableError:
        return UnavailableError(f"{where} cannot be used ({text}): check the disk or the server, then try again")
    if isinstance(error, IntegrityError):
        return ConflictError(f"{where} refuses the change ({text})")
    return RegistryError(f"{where}: {text}")


_SQLITE: dict[int, type[RegistryError]] = {
    sqlite3.SQLITE_BUSY: LockedError,
    sqlite3.SQLITE_LOCKED: LockedError,
    sqlite3.SQLITE_PROTOCOL: LockedError,
    sqlite3.SQLITE_READONLY: ReadOnlyError,
    sqlite3.SQLITE_PERM: ReadOnlyError,
    sqlite3.SQLITE_CORRUPT: DamagedError,
    sqlite3.SQLITE_NOTADB: DamagedError,
    sqlite3.SQLITE_IOERR: UnavailableError,
    sqlite3.SQLITE_FULL: UnavailableError,
    sqlite3.SQLITE_CANTOPEN: UnavailableError,
}
_POSTGRES: dict[str, type[RegistryError]] = {
    "55P03": LockedError,
    "40": LockedError,
    "25006": ReadOnlyError,
    "42501": ReadOnlyError,
    "XX001": DamagedError,
    "XX002": DamagedError,
    "53": UnavailableError,
    "53300": UnreachableError,
    "57": UnreachableError,
    "08": UnreachableError,
    "28": DeniedError,
    "3D": UnavailableError,
}
