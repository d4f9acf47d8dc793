"""Names of adapters: a path, then the registry, then the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest

import lorahub
from lorahub.algebra.recipe import Source
from lorahub.errors import BaseMismatchError, NotFoundError, UsageError
from lorahub.references import find, locate, reads_as_registry
from lorahub.workspace.adding import add
from lorahub.workspace.core import Workspace
from tests.workspace.conftest import write_adapter


@pytest.fixture
def folder(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    there = tmp_path / "folder"
    there.mkdir()
    monkeypatch.chdir(there)
    return there


def test_every_form_of_a_registry_name_is_found(folder: Path, workspace: Workspace) -> None:
    first, second = (add(workspace, [write_adapter(folder / "x.safetensors", seed=seed)]).added[0] for seed in (1, 2))
    workspace.registry.alias("x:1", "prod")
    for reference in ("x:1", "x@prod", f"sha256:{first.sha256[:8]}"):
        located = find(reference, workspace)
        assert located.record is not None
        assert located.record.reference == "x:1"
    assert find("x", workspace).record == workspace.get("x:2")
    assert second.reference == "x:2"


def test_a_file_of_that_name_wins(folder: Path, workspace: Workspace) -> None:
    add(workspace, [write_adapter(folder / "sub" / "x.safetensors")])
    assert find("x", workspace).record is not None
    write_adapter(folder / "x")
    assert find("x", workspace).record is None
    assert locate("x") == Path("x")


def test_looking_a_name_up_makes_no_registry(folder: Path, home: Path) -> None:
    with pytest.raises(NotFoundError, match="no adapter 'style': there is no such file, and it is no Hub repository"):
        find("style")
    assert not home.exists()


def test_a_name_that_is_nowhere_says_what_was_tried(folder: Path, workspace: Workspace) -> None:
    with pytest.raises(
        NotFoundError, match=r"no such file, .*no Hub repository.*; in the registry, no adapter is called"
    ):
        find("style")
    with pytest.raises(UsageError, match="an empty name"):
        find("")
    with pytest.raises(NotFoundError, match="no such file"):
        find("a\0b", workspace)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((text, True) for text in ("style", "style:2", "style@prod", "sha256:abcdef")),
        *((text, False) for text in ("user/repo", "./style", "style:0", "sha256:abc", "")),
    ],
)
def test_what_reads_as_a_registry_name(text: str, expected: bool) -> None:
    assert reads_as_registry(text) is expected


def test_loading_by_name_remembers_which_version_it_was(folder: Path, workspace: Workspace) -> None:
    added = add(workspace, [write_adapter(folder / "x.safetensors")]).added[0]
    (folder / "x.safetensors").unlink()
    loaded = lorahub.load("x")
    assert isinstance(loaded.recipe, Source)
    assert loaded.recipe.name == loaded.recipe.reference == "x:1"
    assert loaded.recipe.file_sha256 == added.sha256
    assert lorahub.combine("0.5*x + 0.5*x:1").base == "sd15"


def test_a_base_said_by_a_person_decides(folder: Path, workspace: Workspace) -> None:
    add(workspace, [write_adapter(folder / "x.safetensors")])
    workspace.registry.edit("x", base="sdxl")
    with pytest.raises(BaseMismatchError, match="sdxl has no"):
        lorahub.load("x:1")
    workspace.registry.edit("x", base="my own base")
    assert lorahub.load("x:1").base == "sd15"
