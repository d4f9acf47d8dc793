"""What every verb of the registry stands on: the database, the blob store, and transactions that nest."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from sqlalchemy.orm import Session

from registry import journal, schema, sqlite_file
from registry.blobs import BlobStore, open_blobs
from registry.engine import Database, open_server, open_sqlite
from registry.errors import DamagedError, InvalidError, ReadOnlyError, UnavailableError
from registry.home import DATABASE, default_home


class Connected:
    """An open registry: a context manager, or call `close`. Threads may share it, forked processes may not."""

    def __init__(self, home: Path, database: Database, blobs: BlobStore, upgraded_from: Path | None) -> None:
        self.home = home
        self.blobs = blobs
        self.upgraded_from = upgraded_from
        self._database = database
        self._thread = threading.local()

    @classmethod
    def open(
        cls,
        home: Path | None = None,
        *,
        database_url: str | None = None,
        store: str | Path | None = None,
        timeout: float = 30.0,
        fresh: bool = False,
    ) -> Self:
        """Open the registry in a folder, made on first use, its schema brought up to date.

        `database_url` puts the tables on a PostgreSQL server, `store` the blobs elsewhere (`s3://...`). `fresh` sets a
        damaged SQLite database aside and begins an empty one, to be rebuilt. `upgraded_from` is the backup, if any.

        Raises:
            NewerSchemaError: a newer lorahub wrote the database.
            DamagedError: the database is damaged, or missing while its journal or the store still holds what was in it.
            NotFoundError: there is no registry, and none can be made.
            LockedError, ReadOnlyError, UnavailableError, InvalidError: see `registry.errors`.
        """
        home = (home or default_home()).expanduser().absolute()
        blobs = open_blobs(store if store is not None else home / "store", home / "cache")
        if database_url is not None:
            if fresh:
                raise InvalidError("only an SQLite database can be set aside: drop and create it on the server")
            database = open_server(database_url, timeout=timeout)
        else:
            _prepare_home(home, fresh)
            database = open_sqlite(home / DATABASE, timeout=timeout, watch=journal.watch)
            if fresh:
                with schema.locked(database, home / DATABASE):
                    sqlite_file.set_aside(home / DATABASE)
        try:
            upgraded_from = schema.ensure(database)
            if upgraded_from is not None:  # its rows are of the old schema; the next change writes it anew
                (home / journal.NAME).unlink(missing_ok=True)
            return cls(home, database, blobs, upgraded_from)
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        """Close all connections; the registry cannot be used afterwards."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def read_only(self) -> bool:
        """Whether this user may only read the registry."""
        return self._database.read_only

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make one transaction of all verbs this thread calls inside; an error leaving the block undoes them all."""
        with self._writing():
            yield

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        current: Session | None = getattr(self._thread, "session", None)
        if current is not None:
            # A savepoint, so that a verb whose error the caller catches leaves nothing half done behind.
            with self._database.translated(), current.begin_nested():
                yield current
            return
        with self._database.writing() as session:
            self._thread.session = session
            try:
                yield session
                if self._database.path is not None:
                    session.flush()
                    journal.write(session.connection(), self.home / journal.NAME, schema.REVISIONS[-1])
            finally:
                self._thread.session = None

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        current: Session | None = getattr(self._thread, "session", None)
        if current is not None:
            with self._database.translated():
                yield current
            return
        with self._database.reading() as session:
            yield session


def _prepare_home(home: Path, fresh: bool) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True)
        rest = any((home / "store" / "sha256").glob("??/*"))
        rest = rest or any((home / name).exists() for name in (f"{DATABASE}-wal", journal.NAME))
        lost = rest and not (home / DATABASE).exists()
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise ReadOnlyError(f"cannot make {home} ({error.strerror}): set LORAHUB_HOME to a folder of yours") from error
    except OSError as error:
        raise UnavailableError(f"cannot make {home} ({error.strerror}): check the disk") from error
    if lost and not fresh:
        raise DamagedError(
            f"{home / DATABASE} is missing, but files or the log of one are in {home}: "
            "run `lorahub db rebuild`, or restore a backup"
        )
