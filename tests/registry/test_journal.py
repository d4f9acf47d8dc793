"""The journal and the database agree after every change, whatever way it was made."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from registry import (
    DamagedError,
    Facts,
    Location,
    NewerSchemaError,
    Parent,
    Recipe,
    Registry,
    Remote,
    Validation,
    journal,
)
from registry.rebuilding import rebuild

Make = Callable[..., Facts]


def rows(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Everything in a database but what is derived."""
    with sqlite3.connect(path) as connection:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        kept = [table for table in tables if not table.startswith(("search", "sqlite", "sketch", "lorahub"))]
        found = {table: sorted(connection.execute(f"SELECT * FROM {table}"), key=repr) for table in sorted(kept)}
    connection.close()
    return found


def change(registry: Registry, facts: Make) -> list[Callable[[], Any]]:
    """One of each kind of change, bulk statements included."""
    place = Location(root="/l", relpath="a\udcff", size=1, mtime_ns=2, inode=2**63 + 1, device=4)
    recipe = Recipe(method="linear", expression="a", tool="t", seed=2**63 + 5)
    remote = Remote(repo="u/r", branch="main", path="w", commit="c", local_sha256="0" * 64, remote_sha256="1" * 64)
    return [
        lambda: registry.add_version("a", facts("one"), norms={"x": 1.5}, tags=["t", "u"], location=place),
        lambda: registry.add_version("a", facts("two"), notes="n"),
        lambda: registry.alias("a:1", "prod", by="me"),
        lambda: registry.alias("a:2", "prod"),
        lambda: registry.add_version("b", facts("b"), parents=[Parent(sha256=facts("one").file_sha256)], recipe=recipe),
        lambda: registry.edit("b", kind="style", trigger_words=["w"]),
        lambda: registry.untag("a:2", "t"),
        lambda: registry.mark_missing("/l", ["a\udcff"]),
        lambda: registry.record_validations("a", [Validation(check="c", severity="ok")]),
        lambda: registry.record_validations("a", [Validation(check="c", severity="error", message="m")]),
        lambda: registry.put_remote("a", remote),
        lambda: registry.put_remote("b", remote),
        lambda: registry.forget_remote("b"),
        lambda: registry.rename("b", "c"),
        lambda: registry.unalias("a", "prod"),
        lambda: registry.remove("a:2"),
        lambda: registry.purge("a:2"),
        lambda: registry.forget_locations("/l", ["a\udcff"]),
        lambda: registry.remove("c"),
        lambda: registry.purge(),
    ]


def test_a_rebuild_after_any_change_gives_the_same_rows(sqlite_place: Any, facts: Make) -> None:
    database = sqlite_place.home / "registry.db"
    with sqlite_place.open() as registry:
        count = len(change(registry, facts))
    for number in range(count):
        with sqlite_place.open() as registry:
            change(registry, facts)[number]()
        before = rows(database)
        assert any(before.values())
        rebuild(sqlite_place.home)
        assert rows(database) == before, number


def test_what_is_rolled_back_is_in_no_journal(sqlite_place: Any, facts: Make) -> None:
    with sqlite_place.open() as registry:
        registry.add_version("a", facts("a"))
        size = (sqlite_place.home / journal.NAME).stat().st_size
        with suppress(ZeroDivisionError), registry.transaction():
            registry.add_version("b", facts("b"))
            raise ZeroDivisionError
        assert (sqlite_place.home / journal.NAME).stat().st_size == size
        registry.add_version("c", facts("c"))
    rebuild(sqlite_place.home)

    with sqlite_place.open() as registry:
        assert registry.names() == ("a", "c")


def test_a_journal_does_not_grow_without_end(sqlite_place: Any, facts: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SLACK", 10_000)
    with sqlite_place.open() as registry:
        registry.add_version("a", facts("a"))
        for number in range(100):
            registry.edit("a", notes=f"note {number}")
        assert (sqlite_place.home / journal.NAME).stat().st_size < 20_000
    rebuild(sqlite_place.home)
    with sqlite_place.open() as registry:
        assert registry.get("a").notes == "note 99"


def test_a_foreign_or_broken_journal_is_refused(sqlite_place: Any, facts: Make, tmp_path: Path) -> None:
    with sqlite_place.open() as registry:
        registry.add_version("a", facts("a"))
    path = sqlite_place.home / journal.NAME
    path.write_bytes(path.read_bytes().replace(b'{"schema": "0', b'{"schema": "9', 1))
    with pytest.raises(NewerSchemaError, match="pip install"):
        rebuild(sqlite_place.home)
    for content in (b"", b"{}", b"[1]\n", b"\xff\n", b'{"number": 1'):
        (tmp_path / "broken").write_bytes(content)
        with pytest.raises(DamagedError):
            journal.read(tmp_path / "broken")
