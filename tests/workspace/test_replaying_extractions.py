"""What `extract` made is made again from its two checkpoints, wherever they lie now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from lorahub import bases
from lorahub.cli import main
from tests.checkpoints import making
from tests.test_extracting import model, original, tuned


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="lorahub")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with the checkpoints `models/base` and `models/tuned`, and a registry of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAHUB_HOME", str(tmp_path / "home"))
    model(tmp_path / "models" / "base", original())
    model(tmp_path / "models" / "tuned", tuned())
    return tmp_path


def extracted(*options: str) -> Any:
    made = run("extract", "--base", "models/base", "--tuned", "models/tuned", "--name", "style", *options, "--json")
    assert made.exit_code == 0, made.output
    return json.loads(made.stdout)


@pytest.mark.parametrize(
    "options",
    [
        ("--rank", "8"),
        ("--energy", "0.6", "--dtype", "bf16", "--format", "diffusers"),
        ("--relative", "0.4", "--dtype", "fp32"),
        ("--max-size", "60kB"),
    ],
    ids=" ".join,
)
def test_it_is_rebuilt_to_the_bit(place: Path, options: tuple[str, ...]) -> None:
    made = extracted(*options)
    result = run("rebuild", "style", "--parent", "models", "-o", "again.safetensors", "--json")
    assert result.exit_code == 0, result.output
    proof = json.loads(result.stdout)
    assert (proof["data_sha256"], proof["file_identical"]) == (made["data_sha256"], True)
    assert [name for name, _ in proof["parents"]] == ["base", "tuned"]
    assert Path("again.safetensors").stat().st_size == made["size"]


def test_from_its_file_with_checkpoints_renamed_and_moved(place: Path) -> None:
    """Both in other places, by other names; the budget counts the metadata, which has the old ones."""
    extracted("--max-size", "60kB", "-o", "style.safetensors")
    Path("models/base").rename("elsewhere-with-a-much-longer-name")
    Path("models/tuned").rename("t")
    given = ("--parent", "elsewhere-with-a-much-longer-name", "--parent", "t")
    result = run("rebuild", "style.safetensors", *given)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].startswith("style.safetensors: identical, data sha256 ")


def test_sharded_and_single_files(place: Path) -> None:
    making.sharded(place / "many" / "transformer", "diffusion_pytorch_model", tuned(), 3)
    save_file({f"transformer.{key}": value for key, value in original().items()}, place / "one.safetensors")
    made = run("extract", "--base", "one.safetensors", "--tuned", "many", "--name", "s", "--rank", "4")
    assert made.exit_code == 0, made.output
    result = run("rebuild", "s", "--parent", "one.safetensors", "--parent", "many", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["file_identical"] is True


def test_a_missing_checkpoint_is_named(place: Path) -> None:
    extracted("--rank", "4")
    result = run("rebuild", "style", "--parent", "models/base")
    assert result.exit_code == 4
    line, *others = result.stderr.splitlines()
    assert not others
    assert "the checkpoint 'tuned' (data sha256 " in line
    assert "is missing: say where it is with --parent" in line
    assert run("rebuild", "style").exit_code == 4


def test_a_checkpoint_that_changed_is_no_parent(place: Path) -> None:
    extracted("--rank", "4")
    weights = next(Path("models/base").rglob("*.safetensors"))
    tensors = load_file(weights)
    tensors["blocks.0.conv.weight"] = tensors["blocks.0.conv.weight"].clone()
    tensors["blocks.0.conv.weight"][0] += 1
    save_file(tensors, weights)
    result = run("rebuild", "style", "--parent", "models", "-o", "again.safetensors")
    assert result.exit_code == 7
    assert result.stderr.splitlines() == [
        line for line in result.stderr.splitlines() if "was changed: models/base" in line
    ]
    assert not Path("again.safetensors").exists()


def test_parts_and_offsets(place: Path) -> None:
    """Of SD 1.5, the one component that was asked for, with its norms and biases."""
    sd15 = bases.get("sd15").components["unet"]
    chosen = {module: shape for module, shape in sd15.layers.items() if module.startswith("up_blocks.3.attentions.2.")}
    random = torch.Generator().manual_seed(0)
    for name in ("base", "tuned"):
        tensors = {f"{module}.weight": torch.randn(shape, generator=random) for module, shape in chosen.items()}
        tensors |= {"conv_in.bias": torch.randn(320, generator=random)}
        making.folder(place / "sd15" / name, {"unet": tensors, "text_encoder": original()})
    sides = ("--base", "sd15/base", "--tuned", "sd15/tuned", "--name", "part")
    made = run("extract", *sides, "--rank", "4", "--only", "unet", "--offsets")
    assert made.exit_code == 0, made.output
    result = run("rebuild", "part", "--parent", "sd15", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["file_identical"] is True
    assert json.loads(result.stdout)["expression"].endswith("only=['unet'], offsets=True)")


def test_two_checkpoints_with_a_file_in_common(place: Path) -> None:
    """The first file of both is the same: the hash of the second tells them apart."""
    for name in ("base", "tuned"):
        making.folder(
            place / "pipes" / name,
            {"transformer": original(), "text_encoder": original() if name == "base" else tuned()},
        )
    made = run("extract", "--base", "pipes/base", "--tuned", "pipes/tuned", "--name", "te", "--rank", "4", "--json")
    assert made.exit_code == 0, made.output
    assert run("rebuild", "te", "--parent", "pipes").exit_code == 0
