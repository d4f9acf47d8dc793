"""Backups: a registry comes back as it was, while others write, over a damaged one, and never in half."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lorahub.errors import ConflictError, UsageError, VerificationError
from lorahub.workspace import editing, removing
from lorahub.workspace.adding import add
from lorahub.workspace.backups import backup, restore_backup
from lorahub.workspace.core import Workspace

WRITER = """
import sys
from lorahub.workspace.core import Workspace
from registry import Facts
with Workspace.open() as workspace:
    print("ready", flush=True)
    for number in range(10_000):
        name, content = f"w{number}", f"{number:064x}"
        workspace.registry.add_version(name, Facts(file_sha256=content, size=1, format="kohya"), tags=["pair"])
"""


@pytest.fixture
def source(workspace: Workspace, tmp_path: Path, make_adapter: Callable[..., Path]) -> Workspace:
    for seed in (1, 2, 3):
        add(workspace, [make_adapter(tmp_path / "style.safetensors", seed=seed)], tags=[f"t{seed}"])
    editing.alias(workspace, "style:1", "prod")
    removing.remove(workspace, "style:2")
    return workspace


def state(workspace: Workspace) -> Any:
    registry = workspace.registry
    return registry.find(), registry.trash(), registry.alias_history("style"), registry.recipe("style")


def contents(folder: Path) -> dict[Path, bytes]:
    """All files but SQLite's shared memory, which readers write their locks to."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("-shm")]
    return {path: path.read_bytes() for path in files}


def test_numbers_history_and_trash_come_back(source: Workspace, tmp_path: Path) -> None:
    made = backup(source, tmp_path / "b.tar", store=True)
    assert (made.versions, made.blobs) == (3, 3)
    restored = restore_backup(made.path, home=tmp_path / "other")
    assert (restored.versions, restored.blobs, restored.without_file) == (3, 3, 0)
    with Workspace.open(tmp_path / "other") as other:
        assert state(other) == state(source)
        assert other.registry.check() == ()
        removing.restore(other, "style:2")
        assert add(other, [tmp_path / "style.safetensors"]).added[0].reference == "style:3"
    assert not list((source.registry.home / "backups").glob("*.db"))


def test_what_was_there_is_kept_and_what_others_have_open_follows(source: Workspace, tmp_path: Path) -> None:
    made = backup(source)
    assert made.path.parent == source.registry.home / "backups"
    editing.rename(source, "style", "later")
    restored = restore_backup(made.path)
    assert source.get("style:3").tags == ("t1", "t2", "t3")
    assert restored.kept is not None
    with closing(sqlite3.connect(restored.kept)) as kept:
        assert kept.execute("SELECT name FROM adapter").fetchall() == [("later",)]


def test_the_journal_is_that_of_the_restored_database(source: Workspace, tmp_path: Path) -> None:
    """A database that is lost after a restore is rebuilt as the restored one."""
    from registry.rebuilding import rebuild

    made = backup(source, tmp_path / "b.tar")
    editing.rename(source, "style", "later")
    restore_backup(made.path)
    editing.tag(source, "style", "after")
    source.close()
    for part in source.registry.home.glob("registry.db*"):
        part.unlink()
    rebuild(source.registry.home)
    with Workspace.open() as again:
        assert again.get("style:3").tags == ("after", "t1", "t2", "t3")
        assert again.get("style@prod").number == 1


@pytest.mark.parametrize("damage", [b"", b"\0" * 4096, b"no database at all" * 300])
def test_a_damaged_database_is_set_aside(source: Workspace, tmp_path: Path, damage: bytes) -> None:
    expected = state(source)
    made = backup(source, tmp_path / "b.tar", store=True)
    source.close()
    for part in source.registry.home.glob("registry.db-*"):
        part.unlink()
    (source.registry.home / "registry.db").write_bytes(damage)
    with pytest.raises(VerificationError):
        Workspace.open()
    restore_backup(made.path)
    with Workspace.open() as again:
        assert state(again) == expected
    [aside] = source.registry.home.glob("registry.db.damaged-*")
    assert aside.read_bytes() == damage


def test_without_the_files_it_is_said_what_is_missing(source: Workspace, tmp_path: Path) -> None:
    made = backup(source, tmp_path / "b.tar")
    assert made.blobs == 0
    assert restore_backup(made.path).without_file == 0
    assert restore_backup(made.path, home=tmp_path / "other").without_file == 3


def test_a_snapshot_while_another_process_writes(workspace: Workspace, tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER], stdout=subprocess.PIPE, env=os.environ)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        while not workspace.registry.find():
            pass
        made = [backup(workspace, tmp_path / f"{number}.tar") for number in range(3)]
    finally:
        writer.kill()
        writer.wait()
        if writer.stdout:
            writer.stdout.close()
    assert 0 < made[0].versions <= made[1].versions <= made[2].versions
    for number, one in enumerate(made):
        restore_backup(one.path, home=tmp_path / f"home{number}")
        with Workspace.open(tmp_path / f"home{number}") as copy:
            names = [record.name for record in copy.registry.find()]
            assert sorted(names, key=lambda name: int(name[1:])) == [f"w{i}" for i in range(one.versions)]
            assert len(copy.registry.search("pair", limit=None)) == one.versions
            assert [line for line in copy.registry.check() if "no blob" not in line] == []


def test_dry_runs_change_nothing(source: Workspace, tmp_path: Path) -> None:
    made = backup(source, tmp_path / "b.tar")
    editing.rename(source, "style", "later")
    before = contents(tmp_path)
    assert backup(source, store=True, dry_run=True).blobs == 3
    assert restore_backup(made.path, dry_run=True).versions == 3
    assert contents(tmp_path) == before
    with pytest.raises(ConflictError):
        backup(source, made.path)


def test_a_backup_with_a_flipped_byte_changes_nothing(source: Workspace, tmp_path: Path) -> None:
    made = backup(source, tmp_path / "b.tar", store=True)
    content = bytearray(made.path.read_bytes())
    content[len(content) // 2] ^= 1
    made.path.write_bytes(content)
    expected = state(source)
    with pytest.raises(VerificationError):
        restore_backup(made.path)
    assert state(source) == expected
    assert not list((source.registry.home / "backups").glob("*.db"))


def test_what_is_no_backup(source: Workspace, tmp_path: Path) -> None:
    from lorahub.workspace.archive import export

    export(source, [], tmp_path / "a.tar")
    with pytest.raises(UsageError, match="lorahub import"):
        restore_backup(tmp_path / "a.tar")


def test_a_server_is_backed_up_by_its_own_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAHUB_DATABASE_URL", "postgresql+psycopg://nobody@127.0.0.1:1/none")
    with pytest.raises(UsageError, match="pg_restore"):
        restore_backup(tmp_path / "b.tar")
