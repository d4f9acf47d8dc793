"""Faults, with real processes: kill -9, many writers, a full disk, a home that cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lorahub.errors import LorahubError
from lorahub.workspace.adding import add
from lorahub.workspace.checking import verify
from lorahub.workspace.core import Workspace
from lorahub.workspace.rebuilding import rebuild

WORKER = Path(__file__).with_name("faults_worker.py")


@pytest.fixture
def folder(tmp_path: Path, make_adapter: Any) -> Path:
    for number in range(8):
        path = make_adapter(tmp_path / "pool" / f"f{number}.safetensors", seed=number, rank=1)
        os.utime(path, (1_600_000_000, 1_600_000_000))
    return tmp_path


def start(verb: str, home: Path, folder: Path, number: int) -> subprocess.Popen[str]:
    command = [sys.executable, WORKER, verb, home, folder, str(number)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def test_kill_at_any_point_loses_nothing_acknowledged(home: Path, folder: Path) -> None:
    assert "acknowledged" in finish(start("kill", home, folder, 52))

    database = home / "registry.db"
    with Workspace.open() as workspace:
        before = [(record.reference, record.file_sha256, record.tags) for record in workspace.registry.find()]
    database.write_bytes(b"\0" * 100)
    rebuild()
    with Workspace.open() as workspace:
        assert [(record.reference, record.file_sha256, record.tags) for record in workspace.registry.find()] == before


def test_eight_processes_add_the_same_and_different_files(home: Path, folder: Path) -> None:
    lines = [finish(process).splitlines() for process in [start("together", home, folder, n) for n in range(8)]]

    with Workspace.open() as workspace:
        for line in {line for each in lines for line in each}:
            reference, sha256 = line.split()
            assert workspace.get(reference).file_sha256 == sha256
        assert workspace.registry.names() == tuple(sorted([f"f{n}" for n in range(8)] + [f"own-{n}" for n in range(8)]))
        assert all(record.number == 1 for record in workspace.registry.find())
        assert len(list(workspace.registry.blobs.blobs())) == 8
        assert not verify(workspace).damaged
    assert list((home / "store" / "incoming").iterdir()) == []


@pytest.mark.parametrize("limit", [0, 10_000])
def test_a_full_disk_leaves_everything_as_it_was(home: Path, folder: Path, limit: int) -> None:
    with Workspace.open() as workspace:
        add(workspace, [folder / "pool" / "f7.safetensors"], name="before", weights=False)
    process = start("full", home, folder, limit)
    out, err = process.communicate(timeout=60)

    assert process.returncode == 1, err
    assert len(out.splitlines()) == 1
    with Workspace.open() as workspace:
        assert [record.reference for record in workspace.registry.find()] == ["before:1"]
        assert workspace.registry.check() == ()
        assert add(workspace, [folder / "pool" / "f0.safetensors"], weights=False).added[0].outcome == "new"
    assert list((home / "store" / "incoming").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_home_that_cannot_be_written_can_be_read(home: Path, folder: Path) -> None:
    with Workspace.open() as workspace:
        add(workspace, [folder / "pool" / "f0.safetensors"], weights=False)
    folders = [home, *(path for path in home.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    try:
        with Workspace.open() as workspace:
            assert verify(workspace, ["f0"]).checked[0].status == "ok"
            with pytest.raises(LorahubError, match="cannot write"):
                add(workspace, [folder / "pool" / "f1.safetensors"], weights=False)
    finally:
        for path in folders:
            path.chmod(0o755)


def test_a_journal_that_was_cut_off_or_lost_is_written_anew(home: Path, folder: Path) -> None:
    journal = home / "journal.jsonl"
    with Workspace.open() as workspace:
        add(workspace, [folder / "pool" / "f0.safetensors"], weights=False)
    with journal.open("r+b") as file:
        file.truncate(journal.stat().st_size - 40)
    with Workspace.open() as workspace:
        add(workspace, [folder / "pool" / "f1.safetensors"], weights=False)
    (home / "registry.db").write_bytes(b"")
    rebuild()
    journal.unlink()
    with Workspace.open() as workspace:
        add(workspace, [folder / "pool" / "f2.safetensors"], weights=False)
    (home / "registry.db").write_bytes(b"")
    rebuild()

    with Workspace.open() as workspace:
        assert workspace.registry.names() == ("f0", "f1", "f2")


def test_a_restored_older_database_is_what_counts(home: Path, folder: Path) -> None:
    with Workspace.open() as workspace:
        add(workspace, [folder / "pool" / "f0.safetensors"], weights=False)
        backup = workspace.registry.backup()
        add(workspace, [folder / "pool" / "f1.safetensors"], weights=False)
    for suffix in ("-wal", "-shm"):
        (home / f"registry.db{suffix}").unlink(missing_ok=True)
    (home / "registry.db").write_bytes(backup.read_bytes())
    with Workspace.open() as workspace:
        add(workspace, [folder / "pool" / "f2.safetensors"], weights=False)
    (home / "registry.db").write_bytes(b"")
    rebuild()

    with Workspace.open() as workspace:
        assert workspace.registry.names() == ("f0", "f2")
    assert (home / "journal.jsonl.before").exists()
