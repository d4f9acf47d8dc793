from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lorahub.errors import ConflictError, VerificationError
from lorahub.workspace.adding import add
from lorahub.workspace.core import Workspace
from lorahub.workspace.rebuilding import rebuild
from lorahub.workspace.scanning import scan
from registry import RunSettings


def fill(home: Path, tmp_path: Path, make_adapter: Any) -> dict[str, Any]:
    """A registry with a bit of everything; returns what must be the same after a rebuild."""
    with Workspace.open() as workspace:
        registry = workspace.registry
        add(workspace, [make_adapter(tmp_path / "a.safetensors", seed=1)], tags=["x"], note="n")
        add(workspace, [make_adapter(tmp_path / "a.safetensors", seed=2)])
        make_adapter(tmp_path / "loras" / "b.safetensors", seed=3)
        scan(workspace, [tmp_path / "loras"])
        add(workspace, [make_adapter(tmp_path / "gone.safetensors", seed=4)])
        registry.remove("gone")
        registry.alias("a:1", "prod", by="me")
        registry.edit("b", base="sdxl", licence="mit", run=RunSettings(steps=4), trigger_words=["t"])
        registry.rename("a", "c")
        registry.untag("c:2", "x")
        return state(workspace)


def state(workspace: Workspace) -> dict[str, Any]:
    registry = workspace.registry
    records = [*registry.find(), *registry.trash()]
    return {
        "records": records,
        "norms": [dict(registry.norms(record.reference)) for record in registry.find()],
        "places": registry.locations(),
        "history": registry.alias_history("c"),
        "findings": [registry.validations(record.reference) for record in registry.find()],
        "found": [one.name for one in registry.search("c")],
    }


def lose(home: Path, how: str) -> None:
    database = home / "registry.db"
    size = database.stat().st_size
    if how == "zeroed":
        database.write_bytes(b"\0" * size)
    elif how == "truncated":
        with database.open("r+b") as file:
            file.truncate(size // 2)
    elif how == "empty":
        database.write_bytes(b"")
    else:
        database.unlink()


@pytest.mark.parametrize("how", ["zeroed", "truncated", "empty", "deleted"])
def test_a_lost_database_is_noticed_and_comes_back_whole(
    home: Path, tmp_path: Path, make_adapter: Any, how: str
) -> None:
    before = fill(home, tmp_path, make_adapter)
    lose(home, how)

    with pytest.raises(VerificationError, match="lorahub db rebuild"), Workspace.open():
        pass
    result = rebuild()

    assert (result.complete, result.recovered, result.without_file, result.unreadable) == (True, (), (), ())
    assert (result.set_aside is None) == (how == "deleted")
    with Workspace.open() as workspace:
        assert state(workspace) == before
        assert workspace.registry.check() == ()
        workspace.registry.tag("c", "after")
    lose(home, "zeroed")
    rebuild()
    with Workspace.open() as workspace:
        assert "after" in workspace.get("c").tags


def test_without_a_journal_the_stored_files_speak(home: Path, tmp_path: Path, make_adapter: Any) -> None:
    with Workspace.open() as workspace:
        said = {"ss_output_name": "their name"}
        add(workspace, [make_adapter(tmp_path / "a.safetensors", metadata=said)], weights=False)
        add(workspace, [make_adapter(tmp_path / "b.safetensors", seed=2)], weights=False)
        nameless = workspace.get("b").file_sha256[:12]
    lose(home, "zeroed")
    (home / "journal.jsonl").unlink()

    result = rebuild()

    assert not result.complete
    assert sorted(result.recovered) == [f"recovered-{nameless}:1", "their_name:1"]
    with Workspace.open() as workspace:
        assert workspace.registry.check() == ()
        assert workspace.get("their_name").stored


def test_a_whole_database_is_left_alone(home: Path, tmp_path: Path, make_adapter: Any) -> None:
    before = fill(home, tmp_path, make_adapter)

    with pytest.raises(ConflictError, match="--force"):
        rebuild()
    rebuild(force=True)

    with Workspace.open() as workspace:
        assert state(workspace) == before


def test_missing_stored_files_are_named(home: Path, tmp_path: Path, make_adapter: Any) -> None:
    fill(home, tmp_path, make_adapter)
    lose(home, "deleted")
    shutil.rmtree(home / "store")

    result = rebuild()

    assert result.without_file == ("c:1", "c:2", "gone:1")
