"""A build with tiny settings: everything the shipped folder has, and the same bytes after an interruption."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import lorahub as lh
from lorahub.errors import ConflictError
from lorahub.quiet import quiet
from lorahub.studio import building, sampling, shipped, world
from lorahub.studio.fitting import Schedule

PLAN = building.Plan(
    vae=Schedule(3, 1e-3, every=1),
    scorer=Schedule(2, 1e-3, every=1),
    base=Schedule(3, 1e-3, ema=0.9, every=1),
    lcm_steps=2,
    style_steps=2,
    styles=("outline",),
    pictures=40,
)


def contents(folder: Path) -> dict[str, str]:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return building.build(tmp_path_factory.mktemp("studio") / "whole", PLAN)


def test_it_makes_what_ships(built: Path) -> None:
    expected = {name for name in contents(shipped.SHIPPED) if not name.startswith("vectors/")}
    assert set(contents(built)) == expected | {"vectors/lcm.safetensors", "vectors/outline.safetensors"}
    pipe = shipped.load(built)
    assert sampling.sample(pipe, ["red star on teal"], sampling.Sampler("ddim", 1)).shape == (1, 3, 32, 32)
    assert shipped.scorer(built)(world.draw(world.scenes(2, 0))).shape == (2, 64)


def test_its_vectors_are_ordinary_files(built: Path) -> None:
    lcm, outline = (lh.load(shipped.path(name, built)) for name in ("lcm", "outline"))
    assert {layer.rank for layer in lcm.layers.values()} == {16}
    assert {layer.rank for layer in outline.layers.values()} == {8}
    assert lcm.layers.keys() == outline.layers.keys()
    assert lh.norm(lcm) > 0 < lh.norm(outline)
    pipe = shipped.load(built)
    with quiet():
        pipe.load_lora_weights(built / "vectors", weight_name="outline.safetensors", adapter_name="outline")
    assert pipe.get_list_adapters() == {"unet": ["outline"]}


@pytest.mark.parametrize(
    "at",
    [
        ("base", 1),
        pytest.param(("autoencoder", 2), marks=pytest.mark.slow),
        pytest.param(("lcm", 1), marks=pytest.mark.slow),
        pytest.param(("outline", 1), marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_build_ends_the_same(built: Path, tmp_path: Path, at: tuple[str, int]) -> None:
    def stop(stage: str, done: int, steps: int, loss: float) -> None:
        if (stage, done) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        building.build(tmp_path / "cut", PLAN, progress=stop)
    with pytest.raises(ConflictError, match="--resume"):
        building.build(tmp_path / "cut", PLAN)
    assert contents(building.build(tmp_path / "cut", PLAN, resume=True)) == contents(built)
