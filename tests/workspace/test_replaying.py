"""Recipes are replayed to the bit, from parents wherever they lie now."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import lorahub
from lorahub.algebra.recipe import to_json
from lorahub.errors import ConflictError, FileFormatError, NotFoundError, VerificationError
from lorahub.files.inspecting import inspect
from lorahub.loading import combination, combine
from lorahub.making import Wish, make
from lorahub.workspace.adding import add
from lorahub.workspace.composing import compose
from lorahub.workspace.core import Workspace
from lorahub.workspace.replaying import rebuild, replay
from tests.workspace.conftest import write_adapter


@pytest.fixture
def parents(tmp_path: Path, workspace: Workspace) -> Path:
    """a (kohya, with an alpha and metadata) and b (diffusers), both added."""
    folder = tmp_path / "parents"
    write_adapter(folder / "a.safetensors", seed=1, rank=4, alpha=2, metadata={"ss_output_name": "a"})
    write_adapter(folder / "b.safetensors", seed=2, rank=8, spelling="diffusers", metadata={"ss_tag_frequency": "{}"})
    add(workspace, [folder / "a.safetensors", folder / "b.safetensors"])
    return folder


WISHES = [
    Wish(),
    Wish(rank=3),
    Wish(energy=0.7, dtype="bf16"),
    Wish(relative=0.4, dtype="fp32", format="diffusers"),
    Wish(max_size=60_000),
]


@pytest.mark.parametrize("wish", WISHES, ids=str)
def test_every_kind_of_result_is_rebuilt_to_the_bit(workspace: Workspace, parents: Path, wish: Wish) -> None:
    vector = combine("0.8*a + 0.3*b - 0.25*a:1", weights=[("b", "to_k", 0.5), ("b", r"attn2\.to_", 2.0)])
    compose(workspace, vector, "c", wish)
    done = rebuild(workspace, "c")
    assert done.file_identical is True
    assert done.data_sha256 == workspace.get("c").data_sha256
    assert [name for name, _ in done.parents] == ["a:1", "b:1"]


MERGES: list[tuple[str, dict[str, str], Wish]] = [
    ("ties", {"density": "0.3"}, Wish(rank=6)),
    ("dare_ties", {"seed": "12345678901234567890"}, Wish(energy=0.7, dtype="bf16")),
    ("della_linear", {"density": "0.7", "epsilon": "0.2", "seed": "4"}, Wish(max_size=60_000)),
    ("knots_dare", {}, Wish(relative=0.4, dtype="fp32", format="diffusers")),
    ("tsv", {}, Wish()),
]


@pytest.mark.parametrize(("method", "settings", "wish"), MERGES, ids=str)
def test_merges_are_rebuilt_to_the_bit(
    workspace: Workspace, parents: Path, method: str, settings: dict[str, str], wish: Wish
) -> None:
    asked = combination(
        "0.8*a - 0.25*b",
        method=method,
        settings=settings,
        weights=[("b", "to_k", 0.5)],
        orthogonal_to="b",
        normalise=True,
    )
    done = compose(workspace, asked, "c", wish)
    again = rebuild(workspace, "c")
    assert again.file_identical is True
    assert [name for name, _ in again.parents] == ["a:1", "b:1"]
    factor = done.made.factor
    assert factor is not None
    assert [(parent.reference, parent.weight) for parent in done.parents] == [
        ("a:1", pytest.approx(0.8 * factor)),
        ("b:1", pytest.approx(-0.25 * factor)),
    ]
    recipe = workspace.registry.recipe("c")
    assert recipe is not None
    assert recipe.method == method


def test_shared_factors_are_gathered_in_a_replay_too(workspace: Workspace, parents: Path) -> None:
    asked = combination("0.8*a + b", orthogonal_to="b", normalise=True)
    made = compose(workspace, asked, "c", Wish(dtype="fp32")).made
    assert made.ranks == (12, 12)
    assert rebuild(workspace, "c").file_identical is True
    compose(workspace, combination("a", orthogonal_to="b"), "d", Wish(rank=5))
    assert rebuild(workspace, "d").file_identical is True
    assert [(parent.reference, parent.weight) for parent in workspace.registry.parents("d")] == [
        ("a:1", 1.0),
        ("b:1", 0.0),
    ]


def test_the_order_of_patterns_survives_the_metadata_of_a_file(
    workspace: Workspace, parents: Path, tmp_path: Path
) -> None:
    vector = combine("a + b", weights=[("*", "to_v", 3.0), ("*", "attn2", 0.5)])
    make(vector, tmp_path / "c.safetensors", Wish())
    assert rebuild(workspace, str(tmp_path / "c.safetensors")).file_identical is None


def test_parents_that_were_renamed_moved_and_edited_are_found(
    workspace: Workspace, parents: Path, tmp_path: Path
) -> None:
    compose(workspace, combine(f"{parents}/a.safetensors + b"), "c", Wish(max_size=60_000))
    workspace.registry.rename("b", "other")
    edited = write_adapter(tmp_path / "edited.safetensors", seed=1, rank=4, alpha=2, metadata={"note": "x" * 2000})
    workspace.registry.remove("a")
    assert rebuild(workspace, "c", parents=[edited]).file_identical is True


def test_a_missing_parent_is_named(workspace: Workspace, parents: Path) -> None:
    compose(workspace, combine("a + b"), "c", Wish())
    workspace.registry.remove("b")
    with pytest.raises(NotFoundError, match=r"the parent 'b:1' \(data sha256 [0-9a-f]{12}\) is missing: .*--parent"):
        rebuild(workspace, "c")
    assert rebuild(workspace, "c", parents=[parents]).file_identical


def test_a_parent_that_changed_is_no_parent(workspace: Workspace, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a.safetensors", seed=1)
    add(workspace, [path], in_place=True)
    compose(workspace, combine("0.5*a"), "c", Wish())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(VerificationError, match="the parent 'a:1' was changed"):
        rebuild(workspace, "c")


def test_what_cannot_be_reproduced_is_said_and_nothing_is_written(
    workspace: Workspace, parents: Path, tmp_path: Path
) -> None:
    compose(workspace, combine("a + b"), "c", Wish())
    record, recipe = workspace.get("c"), workspace.registry.recipe("c")
    assert recipe is not None
    document: dict[str, Any] = json.loads(json.dumps(recipe.document))
    document["recipe"]["sum"][0][0] = 0.999
    facts = replace_facts(record)
    workspace.registry.add_version("d", facts, recipe=replace(recipe, document=document))
    with pytest.raises(VerificationError, match="d cannot be reproduced here"):
        rebuild(workspace, "d", output=tmp_path / "d.safetensors")
    assert not (tmp_path / "d.safetensors").exists()


def replace_facts(record: Any) -> Any:
    from registry import Facts

    return Facts(**{name: getattr(record, name) for name in Facts.__dataclass_fields__})


def test_the_result_is_kept_on_request(workspace: Workspace, parents: Path, tmp_path: Path) -> None:
    compose(workspace, combine("a + b"), "c", Wish())
    target = tmp_path / "c.safetensors"
    rebuild(workspace, "c", output=target)
    assert target.read_bytes() == workspace.path(workspace.get("c")).read_bytes()
    with pytest.raises(ConflictError):
        rebuild(workspace, "c", output=target)


def test_a_version_without_a_recipe(workspace: Workspace, parents: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing says how a was made"):
        rebuild(workspace, "a")


def test_a_parent_made_in_memory_cannot_be_found(workspace: Workspace, parents: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    lorahub.save(lorahub.load(load_file(parents / "a.safetensors")), tmp_path / "m.safetensors")
    with pytest.raises(NotFoundError, match="was made in memory"):
        rebuild(workspace, str(tmp_path / "m.safetensors"))


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"sum": []},
        {"sum": [[1]]},
        {"sum": [["x", {"source": "a"}]]},
        {"step": "melt", "settings": {}, "of": [{"source": "a"}]},
    ]
    + [
        {"step": "truncate", "settings": {"rule": rule}, "of": [{"source": "a"}]}
        for rule in ("fixed(x)", "best(1)", "")
    ]
    + [
        {"step": "truncate", "settings": {}, "of": []},
        {"step": "weighted", "settings": {"weights": 1}, "of": [{"source": "a"}]},
        {"step": "orthogonal", "settings": {}, "of": [{"source": "a"}]},
        {"step": "normalised", "settings": {}, "of": [{"source": "a"}]},
        {"step": "merge", "settings": {"method": "ties", "weights": []}, "of": [{"source": "a"}]},
    ],
    ids=str,
)
def test_what_is_no_recipe_is_refused(parents: Path, recipe: Mapping[str, Any]) -> None:
    with pytest.raises(FileFormatError, match="recipe"):
        replay(recipe, lambda name, sha256: lorahub.load(parents / "a.safetensors"))


def test_a_recipe_replays_by_itself(parents: Path) -> None:
    one, other = lorahub.load(parents / "a.safetensors"), lorahub.load(parents / "b.safetensors")
    made = lorahub.truncate(2 * one - other, lorahub.fixed(3))
    known = {adapter.recipe.data_sha256: adapter for adapter in (one, other)}  # type: ignore[union-attr]
    again = replay(to_json(made.recipe), lambda name, sha256: known[sha256], dtype="fp32")
    assert again.recipe == made.recipe
    for name, layer in made.layers.items():
        assert layer.up.equal(again.layers[name].up)
        assert layer.down.equal(again.layers[name].down)


def test_provenance_says_how_the_file_was_written(parents: Path, tmp_path: Path) -> None:
    make(lorahub.load(parents / "a.safetensors"), tmp_path / "c.safetensors", Wish(dtype="bf16", drop=["embeddings"]))
    told = inspect(tmp_path / "c.safetensors")[0].provenance
    assert told is not None
    assert told["base"] == "sd15"
    assert told["output"] == {"format": "kohya", "dtype": "bf16", "drop": ["embeddings"]}
