"""`--device cuda`, from the command line, gives the files that the CPU gives but for rounding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import lorahub as lh
from tests.baking import making
from tests.cli.conftest import Run
from tests.test_extracting import model, original, tuned

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device on this machine"),
]

COMBINE = ("combine", "0.8*style.safetensors + lcm.safetensors")


def assert_near(here: Path, there: Path) -> None:
    one, other = lh.load(here), lh.load(there)
    assert one.layers.keys() == other.layers.keys()
    assert lh.norm(one - other) <= 2e-3 * lh.norm(one)


@pytest.mark.parametrize(
    "arguments",
    [
        (*COMBINE, "--rank", "2"),
        (*COMBINE, "--max-size", "60kB"),
        (*COMBINE, "--rank", "2", "--method", "ties"),
        (*COMBINE, "--rank", "2", "--method", "knots_dare"),
        (*COMBINE, "--rank", "2", "--method", "tsv"),
        ("resize", "lcm.safetensors", "--energy", "0.9"),
    ],
    ids=" ".join,
)
def test_adapters(run: Run, folder: Path, arguments: tuple[str, ...]) -> None:
    for device in ("cpu", "cuda"):
        result = run(*arguments, "--device", device, "-o", f"{device}.safetensors")
        assert result.exit_code == 0, result.output
    assert_near(folder / "cpu.safetensors", folder / "cuda.safetensors")


def test_extract(run: Run, folder: Path) -> None:
    model(folder / "base", original())
    model(folder / "tuned", tuned())
    for device in ("cpu", "cuda"):
        sides = ("--base", "base", "--tuned", "tuned", "-o", f"{device}.safetensors")
        result = run("extract", *sides, "--rank", "8", "--device", device)
        assert result.exit_code == 0, result.output
    assert_near(folder / "cpu.safetensors", folder / "cuda.safetensors")


def test_compare(run: Run, folder: Path) -> None:
    here, there = (
        json.loads(run("compare", "style.safetensors", "lcm.safetensors", "--device", device, "--json").stdout)
        for device in ("cpu", "cuda")
    )
    assert there["cosine"] == pytest.approx(here["cosine"], abs=1e-5)
    assert there["norms"] == pytest.approx(here["norms"], rel=1e-5)


def test_bake(run: Run, folder: Path) -> None:
    base = making.base("sd15")
    making.folder(folder / "model", making.parts("sd15", torch.float32), "sd15")
    making.saved(making.adapter(base, offsets=False), folder / "a.safetensors", base, format="diffusers")
    for device in ("cpu", "cuda"):
        result = run("bake", "a.safetensors", "--into", "model", "-o", device, "--device", device)
        assert result.exit_code == 0, result.output
    for file in sorted((folder / "cpu").rglob("*.safetensors")):
        there = load_file(folder / "cuda" / file.relative_to(folder / "cpu"))
        for key, tensor in load_file(file).items():
            assert torch.allclose(there[key], tensor, rtol=1e-5, atol=1e-5 * float(tensor.abs().max())), key
