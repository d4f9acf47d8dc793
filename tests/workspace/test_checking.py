from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lorahub.workspace.adding import add
from lorahub.workspace.checking import INTEGRITY, verify
from lorahub.workspace.core import Workspace
from lorahub.workspace.mending import repair
from lorahub.workspace.scanning import scan


@pytest.fixture
def root(tmp_path: Path, make_adapter: Any) -> Path:
    """A folder with one old adapter in it."""
    path = make_adapter(tmp_path / "loras" / "a.safetensors")
    os.utime(path, (1_600_000_000, 1_600_000_000))
    return path.parent  # type: ignore[no-any-return]


def rot(path: Path) -> None:
    """Flip one bit behind everybody's back."""
    status, mode = path.stat(), path.stat().st_mode
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    path.chmod(mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def statuses(workspace: Workspace, **given: bool) -> dict[str, str]:
    return {one.reference: one.status for one in verify(workspace, **given).checked}


def test_whole_files_pass_and_it_is_recorded(workspace: Workspace, root: Path) -> None:
    add(workspace, [root / "a.safetensors"], name="stored", weights=False)
    scan(workspace, [root])

    result = verify(workspace, deep=True)

    assert {one.reference: one.status for one in result.checked} == {"a:1": "ok", "stored:1": "ok"}
    assert (result.damaged, result.inconclusive, result.database) == (False, False, ())
    assert [one.severity for one in workspace.registry.validations("a") if one.check == INTEGRITY] == ["ok"]


def test_bit_rot_is_found_and_mended_from_an_intact_copy(workspace: Workspace, root: Path) -> None:
    add(workspace, [root / "a.safetensors"], name="stored", weights=False)
    scan(workspace, [root])
    blob = workspace.registry.blobs.path(workspace.get("stored").file_sha256)
    rot(blob)

    assert statuses(workspace) == {"a:1": "ok", "stored:1": "damaged"}
    plan = repair(workspace)
    assert [(step.action, step.reference) for step in plan.steps] == [("restore", "stored:1")]
    assert not plan.applied
    assert statuses(workspace)["stored:1"] == "damaged"

    repair(workspace, apply=True)

    assert statuses(workspace) == {"a:1": "ok", "stored:1": "ok"}
    assert len(list((workspace.registry.home / "store" / "quarantine").iterdir())) == 1
    assert repair(workspace).steps == ()


def test_damage_without_a_copy_is_beyond_repair_and_nothing_is_lost(workspace: Workspace, root: Path) -> None:
    add(workspace, [root / "a.safetensors"], weights=False, tags=["mine"])
    rot(workspace.registry.blobs.path(workspace.get("a").file_sha256))
    verify(workspace)

    done = repair(workspace, apply=True)

    assert (done.beyond_repair, [step.action for step in done.steps]) == (("a:1",), ["unstore"])
    assert (workspace.get("a").stored, workspace.get("a").tags) == (False, ("mine",))
    assert workspace.registry.check() == ()
    assert repair(workspace).beyond_repair == ("a:1",)


def test_rot_in_a_users_file_is_damage_and_a_change_is_not(workspace: Workspace, root: Path) -> None:
    scan(workspace, [root])
    rot(root / "a.safetensors")
    assert statuses(workspace) == {"a:1": "damaged"}

    os.utime(root / "a.safetensors")
    result = verify(workspace, ["a"])
    assert (result.checked[0].status, result.damaged, result.inconclusive) == ("changed", False, True)

    (root / "a.safetensors").unlink()
    assert statuses(workspace) == {"a:1": "missing"}


def test_a_blob_that_is_gone_comes_back_too(workspace: Workspace, root: Path) -> None:
    add(workspace, [root / "a.safetensors"], weights=False)
    scan(workspace, [root])
    workspace.registry.blobs.delete(workspace.get("a").file_sha256)

    assert verify(workspace).damaged
    repair(workspace, apply=True)
    assert statuses(workspace) == {"a:1": "ok"}


def test_a_file_that_moved_is_found_by_its_hash(workspace: Workspace, root: Path, tmp_path: Path) -> None:
    scan(workspace, [root])
    content = (root / "a.safetensors").read_bytes()
    (root / "a.safetensors").unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.safetensors").write_bytes(content)

    assert [step.action for step in repair(workspace, apply=True).steps] == ["mark missing"]
    found = repair(workspace, under=[tmp_path / "elsewhere"], apply=True)

    assert [(step.action, step.reference) for step in found.steps] == [("relink", "a:1")]
    assert workspace.path(workspace.get("a")) == tmp_path / "elsewhere" / "b.safetensors"
    assert statuses(workspace) == {"a:1": "ok"}


def test_files_that_are_not_hashed_are_said_to_be(workspace: Workspace, root: Path) -> None:
    scan(workspace, [root], hash=False)

    result = verify(workspace)

    assert ([one.status for one in result.checked], result.damaged) == (["not hashed"], False)


def test_deep_looks_into_the_weights(workspace: Workspace, root: Path) -> None:
    tensors = load_file(root / "a.safetensors")
    key = next(name for name in tensors if "lora_up" in name)
    save_file({**tensors, key: np.full_like(tensors[key], np.inf)}, root / "inf.safetensors")
    scan(workspace, [root])

    assert statuses(workspace) == {"a:1": "ok", "inf:1": "ok"}
    result = verify(workspace, ["inf"], deep=True)

    assert (result.checked[0].status, result.damaged) == ("damaged", True)
    assert key in result.checked[0].messages[0]
