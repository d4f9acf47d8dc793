"""What is made can be registered in one go, with where it came from."""

from __future__ import annotations

from pathlib import Path

import pytest

import lorahub
from lorahub.errors import ConflictError, UsageError
from lorahub.loading import combine, load
from lorahub.making import Wish
from lorahub.workspace.adding import add
from lorahub.workspace.composing import compose
from lorahub.workspace.core import Workspace
from lorahub.workspace.operands import check_operands
from lorahub.workspace.sketch import KIND
from registry import Parent
from tests.workspace.conftest import write_adapter


@pytest.fixture
def parents(tmp_path: Path, workspace: Workspace) -> Path:
    """style and lcm, registered."""
    folder = tmp_path / "parents"
    add(
        workspace, [write_adapter(folder / "style.safetensors", seed=1, metadata={"modelspec.trigger_phrase": "paper"})]
    )
    add(workspace, [write_adapter(folder / "lcm-lora-sdv1-5.safetensors", seed=2)], name="lcm")
    workspace.registry.edit("style", kind="style")
    return folder


def test_the_result_is_registered_with_its_lineage(workspace: Workspace, parents: Path) -> None:
    outside = write_adapter(parents / "outside.safetensors", seed=3)
    vector = combine(f"0.8*style + lcm - 0.5*'{outside}'", weights=[("lcm", "to_k", 0.5)])
    done = compose(workspace, vector, "fast", Wish(rank=4), tags=["quick"])
    record, recipe = workspace.get("fast"), workspace.registry.recipe("fast")
    style, lcm = workspace.get("style"), workspace.get("lcm")
    hashed = add(workspace, [outside]).added[0].sha256
    assert workspace.registry.parents("fast") == (
        Parent(sha256=style.file_sha256, weight=0.8, reference="style:1"),
        Parent(sha256=lcm.file_sha256, weight=1.0, reference="lcm:1"),
        Parent(sha256=hashed, weight=-0.5, reference="outside:1"),  # a bare hash, known since it was added
    )
    assert record.reference == done.reference == "fast:1"
    assert record.stored
    assert record.tags == ("quick",)
    assert record.kind == "merged"
    assert record.run == lcm.run
    assert record.trigger_words[0] == "paper"
    assert recipe is not None
    assert recipe.settings["truncate"] == {"rule": "fixed(4)"}
    assert recipe.settings["output"] == {"format": "kohya", "dtype": "fp16", "drop": []}
    assert recipe.tool.startswith("lorahub ")
    assert recipe.document["recipe"]["step"] == "truncate"
    sketch = workspace.registry.sketch("fast", KIND)
    assert sketch is not None
    assert sketch.norm == pytest.approx(lorahub.norm(load("fast")))
    assert not [*workspace.registry.home.glob("store/incoming/*")]


def test_a_resized_copy_keeps_its_kind(workspace: Workspace, parents: Path) -> None:
    compose(workspace, load("style"), "small", Wish(rank=1))
    assert workspace.get("small").kind == "style"
    compose(workspace, -load("style"), "away", Wish())
    assert workspace.get("away").kind == "merged"


def test_a_second_one_is_the_next_version_and_the_same_one_the_same(workspace: Workspace, parents: Path) -> None:
    references = [
        compose(workspace, combine(text), "mix", Wish()).reference
        for text in ("style + lcm", "style - lcm", "style + lcm")
    ]
    assert references == ["mix:1", "mix:2", "mix:1"]


def test_it_is_also_written_where_asked(workspace: Workspace, parents: Path, tmp_path: Path) -> None:
    done = compose(workspace, load("style"), "copy", Wish(), path=tmp_path / "copy.safetensors")
    assert done.file == tmp_path / "copy.safetensors"
    assert done.file.read_bytes() == workspace.registry.blobs.path(done.file_sha256).read_bytes()
    with pytest.raises(ConflictError):
        compose(workspace, load("style"), "again", Wish(), path=done.file)
    assert "again" not in workspace.registry.names()


@pytest.mark.parametrize("wish", [Wish(format="peft"), Wish()])
def test_what_is_no_single_file_is_refused(workspace: Workspace, parents: Path, tmp_path: Path, wish: Wish) -> None:
    with pytest.raises(UsageError, match="one file"):
        compose(workspace, load("style"), "x", wish, path=tmp_path / "folder")
    with pytest.raises(UsageError, match="adapter name"):
        compose(workspace, load("style"), "a/b", wish)
    assert not (tmp_path / "folder").exists()


def test_two_accelerators_stop_a_sum_and_not_a_mean_or_a_difference(workspace: Workspace, parents: Path) -> None:
    hyper = write_adapter(parents / "Hyper-SD15-4steps-lora.safetensors", seed=4)
    with pytest.raises(ConflictError, match=r"two acceleration vectors \(lcm, hyper-sd\), together at 1\.5.*--force"):
        check_operands(combine(f"lcm + 0.5*{hyper}").recipe)
    assert "accelerators" in {finding.check for finding in check_operands(combine(f"0.5*lcm + 0.5*{hyper}").recipe)}
    assert check_operands(combine(f"lcm - 0.5*{hyper}").recipe) == []
    assert check_operands(combine("0.8*style + lcm").recipe) == []


def test_an_operand_that_hardly_shows_is_a_doubt(workspace: Workspace, parents: Path) -> None:
    (doubt,) = check_operands(combine("0.01*style + lcm").recipe)
    assert doubt.check == "norm"
    assert "lcm:1 is" in doubt.message
    assert "times as long as style:1" in doubt.message
