from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from lorahub.errors import FileFormatError, NotFoundError, UsageError
from lorahub.workspace.adding import add
from lorahub.workspace.core import Workspace
from lorahub.workspace.scanning import scan


def test_a_file_is_copied_and_recorded_with_all_its_facts(
    workspace: Workspace, tmp_path: Path, make_adapter: Any
) -> None:
    path = make_adapter(tmp_path / "style.safetensors")
    content = path.read_bytes()

    [added] = add(workspace, [path], tags=["mine"], kind="style", note="hello").added
    path.unlink()

    record = workspace.get("style")
    assert (added.reference, added.sha256, added.outcome, added.stored) == (
        "style:1",
        hashlib.sha256(content).hexdigest(),
        "new",
        True,
    )
    assert (record.tags, record.kind, record.notes, record.base) == (("mine",), "style", "hello", "sd15")
    assert record.fingerprint
    assert record.data_sha256
    assert workspace.path(record).read_bytes() == content
    assert len(workspace.registry.norms("style")) == 12
    assert {one.check for one in workspace.registry.validations("style")} >= {"hashes", "finite", "zero layers"}


def test_adding_again_changes_nothing(workspace: Workspace, tmp_path: Path, make_adapter: Any) -> None:
    path = make_adapter(tmp_path / "style.safetensors")
    add(workspace, [path], weights=False)

    [again] = add(workspace, [path], weights=False).added

    assert (again.reference, again.outcome) == ("style:1", "known")
    assert len(list(workspace.registry.blobs.blobs())) == 1


def test_another_content_is_the_next_version(workspace: Workspace, tmp_path: Path, make_adapter: Any) -> None:
    for seed in (1, 2):
        add(workspace, [make_adapter(tmp_path / "style.safetensors", seed=seed)], weights=False)

    assert [record.number for record in workspace.registry.versions("style")] == [1, 2]


def test_in_place_copies_nothing(workspace: Workspace, tmp_path: Path, make_adapter: Any) -> None:
    path = make_adapter(tmp_path / "a b.safetensors")

    [added] = add(workspace, [path], in_place=True, weights=False).added

    record = workspace.get("a_b")
    assert (added.stored, record.stored, workspace.path(record)) == (False, False, path)
    assert list(workspace.registry.blobs.blobs()) == []


def test_in_place_keeps_the_name_of_a_scan_unless_one_is_given(
    workspace: Workspace, tmp_path: Path, make_adapter: Any
) -> None:
    for number, folder in enumerate("xy"):
        make_adapter(tmp_path / "loras" / folder / "style.safetensors", seed=number)
    scan(workspace, [tmp_path / "loras"], hash=False)
    second = tmp_path / "loras" / "y" / "style.safetensors"

    [kept] = add(workspace, [second], in_place=True, tags=["t"], weights=False).added
    [named] = add(workspace, [second], in_place=True, name="other", weights=False).added

    assert (kept.reference, named.reference) == ("y-style:1", "other:1")
    assert workspace.get("y-style").tags == ("t",)
    assert workspace.get("y-style").hashed


def test_a_stored_version_and_a_scanned_one_are_one(workspace: Workspace, tmp_path: Path, make_adapter: Any) -> None:
    path = make_adapter(tmp_path / "loras" / "style.safetensors")
    scan(workspace, [tmp_path / "loras"], hash=False)
    add(workspace, [path], weights=False)

    scan(workspace, [tmp_path / "loras"])

    [record] = workspace.registry.versions("style")
    assert (record.stored, record.hashed) == (True, True)
    assert [place.reference for place in workspace.registry.locations()] == [record.reference]


def test_several_files_of_which_some_fail(workspace: Workspace, tmp_path: Path, make_adapter: Any) -> None:
    good = make_adapter(tmp_path / "good.safetensors")
    (tmp_path / "bad.safetensors").write_text("<html>")

    result = add(workspace, [tmp_path / "bad.safetensors", good, tmp_path / "none"], weights=False)

    assert [one.reference for one in result.added] == ["good:1"]
    assert [Path(path).name for path, _ in result.failed] == ["bad.safetensors", "none"]
    assert "HTML" in result.failed[0][1]


def test_what_cannot_be_added(workspace: Workspace, tmp_path: Path, make_adapter: Any) -> None:
    path = make_adapter(tmp_path / "a.safetensors")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotFoundError):
        add(workspace, [tmp_path / "none.safetensors"])
    with pytest.raises(FileFormatError, match="not a regular file"):
        add(workspace, [tmp_path / "pipe"])
    with pytest.raises(UsageError, match="one name"):
        add(workspace, [path, path], name="x")
    with pytest.raises(UsageError, match="try 'etc_x'"):
        add(workspace, [path], name="../etc/x", weights=False)
    assert workspace.registry.find() == ()


def test_a_peft_folder_keeps_its_configuration(workspace: Workspace, tmp_path: Path, make_adapter: Any) -> None:
    path = make_adapter(tmp_path / "p" / "adapter_model.safetensors", spelling="diffusers")
    (path.parent / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')

    for given in (path, path.parent):
        with pytest.raises(UsageError, match=r"adapter_config\.json"):
            add(workspace, [given])
    [added] = add(workspace, [path.parent], in_place=True).added

    assert (added.reference, workspace.get("p").scale) == ("p:1", 2.0)


def test_a_dry_run_writes_nothing(workspace: Workspace, tmp_path: Path, make_adapter: Any) -> None:
    path = make_adapter(tmp_path / "a.safetensors")

    def state() -> list[tuple[Path, int]]:
        return [(each, each.stat().st_mtime_ns) for each in sorted(workspace.registry.home.rglob("*"))]

    before = state()
    [planned] = add(workspace, [path], weights=False, dry_run=True).added

    assert (planned.reference, planned.outcome) == ("a", "new")
    assert state() == before
    add(workspace, [path], weights=False)
    [known] = add(workspace, [path], weights=False, dry_run=True).added
    assert (known.reference, known.outcome) == ("a:1", "known")
