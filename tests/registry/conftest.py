"""Every store test runs on SQLite and on a real PostgreSQL server.

`LORAHUB_TEST_POSTGRES` names a server where databases can be created; otherwise a private cluster is started from the
binaries of Debian's `postgresql` package, as an unprivileged user, on a socket of its own. Without either the
PostgreSQL half is skipped.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import URL, create_engine, make_url, text

from registry import Facts, Registry, schema
from registry.engine import open_server
from registry.models import Base


@dataclass(frozen=True)
class Place:
    """Where a test's registry is; other processes can be told."""

    home: Path
    database_url: str | None

    def open(self, **options: Any) -> Registry:
        return Registry.open(self.home, database_url=self.database_url, **options)


def make_facts(content: object, **found: Any) -> Facts:
    """Facts of a file with this content."""
    data = str(content).encode()
    return Facts(**{"file_sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "format": "kohya"} | found)


@pytest.fixture
def facts() -> Callable[..., Facts]:
    return make_facts


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    given = os.environ.get("LORAHUB_TEST_POSTGRES")
    if given:
        yield given
        return
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL: apt-get install postgresql, or set LORAHUB_TEST_POSTGRES to a server's URL")
    folder = Path(tempfile.mkdtemp(prefix="lorahub-pg-"))
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if user:
        shutil.chown(folder, "postgres")

    def run(program: str, *arguments: str) -> None:
        command = [*user, str(found[-1].parent / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, cwd="/", timeout=60)

    settings = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off -c max_connections=60"
    try:
        run("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
        run("pg_ctl", "start", "-w", "-l", str(folder / "log"), "-o", settings)
        try:
            yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
        finally:
            run("pg_ctl", "stop", "-w", "-m", "immediate")
    finally:
        shutil.rmtree(folder)


def _administer(server: str, *statements: str) -> None:
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))
    finally:
        engine.dispose()


def _named(server: str, name: str) -> str:
    url: URL = make_url(server).set(database=name)
    return url.render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def postgres_template(postgres_url: str) -> Iterator[str]:
    name = f"lorahub_{uuid4().hex}"
    _administer(postgres_url, f"CREATE DATABASE {name}")
    database = open_server(_named(postgres_url, name), timeout=30)
    schema.ensure(database)
    database.close()
    yield name
    _administer(postgres_url, f"DROP DATABASE {name}")


@pytest.fixture
def postgres_database(postgres_url: str, postgres_template: str) -> Iterator[str]:
    """A database with our tables, empty: one for all tests, because making one takes longer than most of them."""
    url = _named(postgres_url, postgres_template)
    yield url
    tables = ", ".join(Base.metadata.tables)
    _administer(url, f"TRUNCATE {tables} RESTART IDENTITY")


@pytest.fixture
def own_postgres(postgres_url: str, postgres_template: str) -> Iterator[str]:
    """A database with our tables for a test that changes them."""
    name = f"lorahub_{uuid4().hex}"
    _administer(postgres_url, f"CREATE DATABASE {name} TEMPLATE {postgres_template}")
    yield _named(postgres_url, name)
    _administer(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_postgres(postgres_url: str) -> Iterator[str]:
    """A database without tables."""
    name = f"lorahub_{uuid4().hex}"
    _administer(postgres_url, f"CREATE DATABASE {name}")
    yield _named(postgres_url, name)
    _administer(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    url = request.getfixturevalue("postgres_database") if request.param == "postgresql" else None
    return Place(tmp_path / "home", url)


@pytest.fixture
def registry(place: Place) -> Iterator[Registry]:
    with place.open() as opened:
        yield opened


@pytest.fixture
def sqlite_place(tmp_path: Path) -> Place:
    return Place(tmp_path / "home", None)
