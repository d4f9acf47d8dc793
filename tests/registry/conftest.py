"""Every store test runs on SQLite and on a real PostgreSQL server (`postgres_url` in tests/conftest.py)."""

from __future__ import annotations

import hashlib
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
