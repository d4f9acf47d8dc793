"""lorahub bake, on a folder whose base is not listed: what it prints, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.baking import making
from tests.cli.conftest import Run

Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with the folder `model` and adapters of one layer."""
    monkeypatch.chdir(tmp_path)
    making.folder(tmp_path / "model", making.parts("sd15"), "sd15")
    random = torch.Generator().manual_seed(0)
    up, down = torch.randn(8, 2, generator=random), torch.randn(2, 8, generator=random)
    tensors = {f"unet.{Q}.lora_B.weight": up, f"unet.{Q}.lora_A.weight": down}
    save_file(tensors, "style.safetensors")
    save_file({**tensors, f"unet.{Q}.lora_magnitude_vector": torch.ones(8)}, "dora.safetensors")
    save_file({key.replace("attn1", "attn9"): value for key, value in tensors.items()}, "strange.safetensors")
    return tmp_path


def test_it_says_what_it_did(run: Run, place: Path) -> None:
    result = run("bake", "0.5*style.safetensors + dora.safetensors", "--into", "model", "-o", "out", "--check")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("out: unlisted:dotted, F16, ")
    assert lines[1] == "  0.5*style + 1*dora baked into model: 1 layers (1 by DoRA)"
    assert lines[2].startswith("  read back and compared: rounding changes ΔW by ")
    assert lines[3].startswith("  check: outputs differ by ")
    assert result.stderr == ""
    before, after = making.tensors_of(place / "model"), making.tensors_of(place / "out")
    assert [key for key in before if not torch.equal(before[key], after[key])] == [
        key for key in before if key.endswith(f":{Q}.weight")
    ]


def test_a_negative_expression_is_no_option(run: Run, place: Path) -> None:
    result = run("bake", "-0.5*style.safetensors", "--into", "model", "-o", "out")
    assert "-0.5*style baked into model" in result.stdout


def test_as_json(run: Run, place: Path) -> None:
    save_file(load_file("model/text_encoder/model.safetensors"), "model/pruned.safetensors")
    result = run("bake", "style.safetensors", "--into", "model", "-o", "out", "--json")
    facts = json.loads(result.stdout)
    assert facts["command"] == "bake"
    assert (facts["output"], facts["layers"], facts["dtypes"], facts["check"]) == ("out", 1, ["F16"], None)
    assert facts["left_out"] == ["pruned.safetensors"]


def test_what_it_refuses(refused: Callable[..., str], place: Path) -> None:
    (place / "there").mkdir()
    assert "exists already" in refused(6, "bake", "style.safetensors", "--into", "model", "-o", "there")
    assert "no such file: nowhere" in refused(4, "bake", "style.safetensors", "--into", "nowhere", "-o", "out")
    assert "lacks 1 layers" in refused(1, "bake", "strange.safetensors", "--into", "model", "-o", "out")
    assert "give a name without" in refused(2, "bake", "style.safetensors", "--into", "model", "-o", "out.safetensors")
    (place / "model" / "unet" / "config.json").write_text("{}")
    message = refused(8, "bake", "style.safetensors", "--into", "model", "-o", "out", "--check")
    assert message.startswith("--check is inconclusive: no input is known")


def test_what_is_missing(misused: Callable[..., str]) -> None:
    assert "--into" in misused("bake", "style.safetensors", "-o", "out")
    assert "--output" in misused("bake", "style.safetensors", "--into", "model")
