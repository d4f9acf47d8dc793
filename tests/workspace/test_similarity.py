"""Near ones are found by their weights, whatever their files look like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import lorahub
from lorahub.algebra.adapter import Adapter
from lorahub.algebra.lowrank import LowRank
from lorahub.errors import UsageError
from lorahub.loading import combine, load
from lorahub.making import Wish
from lorahub.workspace import sketch as sketches
from lorahub.workspace.adding import add
from lorahub.workspace.composing import compose
from lorahub.workspace.core import Workspace
from lorahub.workspace.similarity import refresh, similar
from lorahub.workspace.sketching import core, sketch
from tests.workspace.conftest import write_adapter


@pytest.fixture
def library(workspace: Workspace, tmp_path: Path) -> Workspace:
    """Ten strangers and the relatives of number 1: respelled, resized, merged, scaled."""
    for seed in range(1, 11):
        add(workspace, [write_adapter(tmp_path / f"a{seed}.safetensors", seed=seed, rank=4)])
    add(workspace, [write_adapter(tmp_path / "respelled.safetensors", seed=1, rank=4, spelling="diffusers")])
    compose(workspace, load("a1"), "resized", Wish(rank=3, dtype="bf16"))
    compose(workspace, combine("0.8*a1 + 0.6*a2"), "merged", Wish())
    compose(workspace, combine("-2*a1"), "against", Wish(dtype="fp32"))
    refresh(workspace)
    return workspace


def test_relatives_are_found_and_strangers_are_not(library: Workspace) -> None:
    found = similar(library, "a1", least=0.3)
    assert [match.reference for match in found.matches][2:] == ["resized:1", "merged:1"]
    near = {match.reference: match for match in found.matches}
    assert near["respelled:1"].cosine == pytest.approx(1)
    assert near["against:1"].cosine == pytest.approx(-1)
    assert near["against:1"].scale == pytest.approx(-2, rel=1e-4)
    exact = lorahub.cosine(load("a1"), load("merged"))
    assert near["merged:1"].cosine == pytest.approx(exact, abs=1e-6)
    assert all(match.exact for match in found.matches)
    assert (found.compared, found.unsketched) == (14, 0)
    assert similar(library, "a1", limit=1).matches[0].reference in ("respelled:1", "against:1")


def test_estimates_are_near_the_truth(library: Workspace) -> None:
    exact = {match.reference: match for match in similar(library, "merged", least=0).matches}
    for match in similar(library, "merged", exact=False, least=0.3).matches:
        assert not match.exact
        assert match.cosine == pytest.approx(exact[match.reference].cosine, abs=0.1)
        assert match.norm == pytest.approx(exact[match.reference].norm, rel=1e-5)


def test_a_file_outside_the_registry_is_looked_for_too(library: Workspace, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "stranger.safetensors", seed=3, rank=4, alpha=1)
    assert similar(library, str(path), limit=1).matches[0].reference == "a3:1"


def test_a_sketch_is_linear_and_blind_to_spelling(tmp_path: Path) -> None:
    one, other = (lorahub.load(write_adapter(tmp_path / f"{seed}.safetensors", seed=seed)) for seed in (1, 2))
    mixed = 0.5 * one - 2 * other
    expected = 0.5 * sketches.unpack(sketch(one).data) - 2 * sketches.unpack(sketch(other).data)
    assert sketches.unpack(sketch(mixed).data) == pytest.approx(expected, abs=0.02 * float(np.abs(expected).max()))
    assert sketch(mixed).norm == pytest.approx(lorahub.norm(mixed))


def test_a_core_is_that_of_the_dense_matrix(tmp_path: Path) -> None:
    adapter = lorahub.load(write_adapter(tmp_path / "a.safetensors", seed=1)) * 0.3
    name, layer = next(iter(adapter.layers.items()))
    left, right = (
        torch.from_numpy(sketches.signs(f"{name}|{side}", size)).double() / 8**0.5
        for side, size in zip(("out", "in"), layer.matrix_shape, strict=True)
    )
    dense = left.T @ layer.dense(torch.float64) @ right
    assert torch.allclose(core(name, layer), dense, rtol=1e-4, atol=1e-6)


def test_weights_beyond_float32_have_a_sketch(tmp_path: Path) -> None:
    adapter = lorahub.load(write_adapter(tmp_path / "a.safetensors", seed=1))
    huge = {name: LowRank.of(layer.up * 1e38, layer.down * 1e38) for name, layer in adapter.layers.items()}
    made = sketch(Adapter(adapter.base, huge))
    assert made.norm == pytest.approx(1e76 * lorahub.norm(adapter), rel=1e-5)
    assert sketches.cosines(made.data, [sketch(adapter).data]) == pytest.approx([1], abs=1e-3)


def test_the_inner_product_is_estimated_without_bias() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(2, 30))
    errors = []
    for seed in range(2000):
        drawn = sketches.signs(str(seed), 30) / 8**0.5
        errors.append(float((one @ drawn) @ (drawn.T @ other)) - float(one @ other))
    assert abs(np.mean(errors)) < 4 * np.std(errors) / 2000**0.5


def test_signs_are_the_same_everywhere() -> None:
    assert sketches.signs("unet.a|out", 2).tolist() == SIGNS
    assert sketches.KIND == "core8x32/1"  # change the name whenever the signs, or anything else of a sketch, change


SIGNS = [[-1.0, -1.0, 1.0, -1.0, 1.0, -1.0, -1.0, -1.0], [-1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, 1.0]]


def test_cosines_by_the_thousand_are_those_of_each() -> None:
    generator = np.random.default_rng(0)
    packed = [sketches.pack(generator.normal(size=sketches.SIZE) * 10.0**power) for power in range(-150, 150)]
    packed.append(sketches.pack(np.zeros(sketches.SIZE)))
    found = sketches.cosines(packed[3], packed)
    assert found[3] == pytest.approx(1)
    assert found[-1] == 0
    for i in (0, 7, 299):
        steps = [np.frombuffer(packed[j], "i1", offset=8).astype(float) for j in (3, i)]
        assert found[i] == pytest.approx(
            steps[0] @ steps[1] / np.prod([np.linalg.norm(each) for each in steps]), abs=1e-6
        )
    assert np.abs(np.delete(found, [3])).max() < 0.15
    assert sketches.cosines(packed[3], []).size == 0


def test_what_cannot_be_sketched_is_named_and_the_rest_is_done(workspace: Workspace, tmp_path: Path) -> None:
    add(workspace, [write_adapter(tmp_path / "a.safetensors")])
    gone = write_adapter(tmp_path / "gone.safetensors", seed=5)
    add(workspace, [gone], in_place=True)
    before = {record.reference for record in workspace.registry.without_sketch(sketches.KIND)}
    gone.unlink()
    done = refresh(workspace)
    assert done.made == len(before - {"gone:1"})
    assert [reference for reference, _ in done.failed] == [*(before & {"gone:1"})]


def test_a_zero_adapter_is_like_nothing(workspace: Workspace, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(write_adapter(tmp_path / "a.safetensors"))
    save_file(
        {name: tensor if "alpha" in name else tensor * 0 for name, tensor in tensors.items()},
        tmp_path / "z.safetensors",
    )
    with pytest.raises(UsageError, match="is zero"):
        similar(workspace, str(tmp_path / "z.safetensors"))
