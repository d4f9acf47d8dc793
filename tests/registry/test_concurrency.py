from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from registry import Facts, LockedError, Registry

WORKER = Path(__file__).with_name("registry_worker.py")
ROOT = Path(__file__).parents[2]


def start(place: Any, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(WORKER), str(place.home), place.database_url or "", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def finish(processes: list[subprocess.Popen[str]]) -> list[list[str]]:
    """The lines of each; all must have ended well and silently."""
    results = [(*process.communicate(timeout=60), process.returncode) for process in processes]
    assert [(code, errors) for _, errors, code in results] == [(0, "")] * len(results)
    return [output.splitlines() for output, _, _ in results]


def test_eight_processes_add_the_same_and_different_files(place: Any, facts: Callable[..., Facts]) -> None:
    count = 6
    with place.open() as registry:
        registry.add_version("counter", facts("counter"), notes="0")
        lines = finish([start(place, "add", str(worker), str(count)) for worker in range(8)])
        assert all(len(acknowledged) == 2 * count for acknowledged in lines)
        assert registry.get("counter").notes == str(8 * count)  # no lost update
        shared = registry.versions("shared")
        assert [record.number for record in shared] == list(range(1, count + 1))
        assert len({record.file_sha256 for record in shared}) == count
        for worker in range(8):
            assert [record.number for record in registry.versions(f"own-{worker}")] == list(range(1, count + 1))
        assert len(list(registry.blobs.blobs())) == count + 8 * count  # one blob each
        assert list((place.home / "store" / "incoming").iterdir()) == []
        assert registry.check() == ()


def test_eight_processes_create_the_registry_at_once(tmp_path: Path, sqlite_place: Any) -> None:
    assert finish([start(sqlite_place, "open") for _ in range(8)]) == [["opened"]] * 8
    leftover = {path.name for path in sqlite_place.home.iterdir()} - {"registry.db", "registry.db.lock"}
    assert leftover == set()


def test_processes_create_the_tables_on_a_server_at_once(tmp_path: Path, empty_postgres: str) -> None:
    from dataclasses import make_dataclass

    place = make_dataclass("Where", ["home", "database_url"])(tmp_path, empty_postgres)
    assert finish([start(place, "open") for _ in range(4)]) == [["opened"]] * 4


def test_readers_see_one_moment_while_writers_write(place: Any, facts: Callable[..., Facts]) -> None:
    with place.open() as registry:
        registry.add_version("counter", facts("counter"), notes="0")
        assert finish([start(place, "add", "1", "25"), start(place, "read", "40")])[1] == ["consistent"]


def test_a_reader_is_not_held_up_by_a_writer(place: Any, facts: Callable[..., Facts]) -> None:
    with place.open() as writer, place.open(timeout=0.2) as reader:
        writer.add_version("x", facts("a"))
        with writer.transaction():
            writer.add_version("x", facts("b"))
            assert [adapter.versions for adapter in reader.list()] == [(1,)]
            assert [adapter.name for adapter in reader.search("x")] == ["x"]
        assert [adapter.versions for adapter in reader.list()] == [(1, 2)]


def test_a_writer_that_waits_too_long_says_so_and_can_retry(place: Any, facts: Callable[..., Facts]) -> None:
    with place.open() as first, place.open(timeout=0.2) as second:
        with first.transaction():
            first.add_version("x", facts("a"))
            with pytest.raises(LockedError, match="try again"):
                second.add_version("y", facts("b"))
        second.add_version("y", facts("b"))
        assert first.names() == ("x", "y")


def test_a_lock_of_another_program_is_named(sqlite_place: Any, facts: Callable[..., Facts]) -> None:
    with sqlite_place.open(timeout=0.2) as registry:
        with closing(sqlite3.connect(sqlite_place.home / "registry.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(LockedError, match=r"registry\.db is locked"):
                registry.add_version("x", facts("a"))
        registry.add_version("x", facts("a"))


def test_threads_share_a_registry(place: Any, facts: Callable[..., Facts]) -> None:
    failures: list[BaseException] = []

    def work(registry: Registry, number: int) -> None:
        try:
            for step in range(5):
                registry.add_version(f"t{number}", facts(f"{number} {step}"))
                registry.list()
        except BaseException as error:
            failures.append(error)

    with place.open() as registry:
        threads = [threading.Thread(target=work, args=(registry, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert [adapter.versions for adapter in registry.list()] == [(1, 2, 3, 4, 5)] * 4
