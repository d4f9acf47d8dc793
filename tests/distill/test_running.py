"""A run as a user starts it: a TOML file, a base in a folder, pictures with captions, a registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from lorahub.cli import main
from lorahub.distill.base import load_base
from lorahub.distill.registering import run_settings
from lorahub.distill.settings import Settings
from lorahub.errors import FileFormatError, NotFoundError, UsageError
from lorahub.files.inspecting import inspect
from tests.distill.tiny import TARGETS, sd, sdxl


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and four pictures."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("distill")
    sd().save_pretrained(folder / "base")
    (folder / "pictures").mkdir()
    for index, colour in enumerate(("red", "blue", "green", "white")):
        Image.new("RGB", (20, 16), colour).save(folder / "pictures" / f"{index}.png")
        (folder / "pictures" / f"{index}.txt").write_text("red star")
    return folder


@pytest.fixture
def config(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAHUB_HOME", str(tmp_path / "home"))
    config = tmp_path / "lcm.toml"
    config.write_text(
        f'base = "{place / "base"}"\noutput = "lcm.safetensors"\nname = "lcm"\nrank = 2\nsteps = 2\nbatch_size = 2\n'
        f'targets = {json.dumps(TARGETS)}\nsolver_steps = 25\n[data]\nfolder = "{place / "pictures"}"\n'
    )
    return config


def lorahub(*arguments: str) -> Any:
    return CliRunner().invoke(main, arguments)


def test_a_run_makes_a_registered_acceleration_vector(config: Path) -> None:
    done = lorahub("distill", str(config), "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result.pop("loss") > 0
    size = Path("lcm.safetensors").stat().st_size
    assert result == {
        "schema": 1, "command": "distill", "mode": "lora", "output": "lcm.safetensors", "model": None,
        "registered": "lcm:1", "rank": 2, "steps": 2, "layers": 16, "size": size,
    }  # fmt: skip
    shown = json.loads(lorahub("show", "lcm", "--json").stdout)["record"]
    assert shown["kind"] == "acceleration"
    assert shown["trigger_words"] == []
    run = shown["run"]
    assert (run["scheduler"], run["steps"], run["steps_max"]) == ("LCMScheduler", 4, 8)
    assert (run["guidance_min"], run["guidance_max"], run["lora_scale"]) == (1.0, 2.0, 1.0)
    assert run["scheduler_args"] == {"original_inference_steps": 25, "timestep_scaling": 10.0}
    assert run["extra"]["distilled"]["rank"] == 2
    metadata = inspect("lcm.safetensors")[0].metadata
    assert metadata["modelspec.title"] == "lcm"
    trained = json.loads(metadata["ss_lorahub_training"])
    assert trained["solver_steps"] == 25
    assert "base" not in trained, "a path is nobody's business"


def test_what_is_said_to_people(config: Path) -> None:
    done = lorahub("distill", str(config), "-s", "mode=guided", "-s", "name=", "-s", "output=guided.safetensors")
    assert done.exit_code == 0, done.output
    first, second = done.stdout.splitlines()
    assert first == "guided-run/unet: the trained U-Net"
    assert second.startswith("  guided, 2 steps, loss ")
    again = lorahub("distill", str(config), "-s", "output=guided.safetensors")
    assert again.exit_code == 6
    assert again.stderr == (
        "Error: guided-run has checkpoints of an earlier run: go on with --resume, or start anew with force = true\n"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-s", "rank=none"], 2, "rank: expected a whole number, got 'none'"),
        (["-s", "data.folder=nowhere"], 4, "nowhere"),
        (["-s", "data=1"], 2, "[data]: say what to train on, such as folder = 'pictures'"),
        (["-s", "base=./nowhere"], 4, "base: ./nowhere is no folder of a diffusers pipeline"),
        (["-s", "output="], 2, "name: only a file can be registered; give an output"),
        (["-s", "output=", "-s", "name="], 2, "output: name the file to write the vector to"),
        (["-s", "name=a:b"], 2, "a:b"),
    ],
)
def test_errors_are_one_line(config: Path, arguments: list[str], code: int, message: str) -> None:
    done = lorahub("distill", str(config), *arguments)
    assert done.exit_code == code, done.output
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not Path("lcm.safetensors").exists()


def test_plan_in_words_and_json(config: Path) -> None:
    done = lorahub("distill", "plan", "--base", "sdxl", "--rank", "64")
    assert "788 layers, 196,751,360 trainable parameters (7.7% of the U-Net's 2,567,463,684)" in done.stdout
    result = json.loads(lorahub("distill", "plan", str(config), "--base", "sd15", "-s", "rank=4", "--json").stdout)
    assert (result["command"], result["rank"], len(result["targets"])) == ("distill plan", 4, len(TARGETS))
    assert result["total"] == sum(result["memory"].values())
    assert lorahub("distill", "plan", "--base", "sd99").exit_code == 4


def test_how_to_run_follows_the_mode() -> None:
    tcd = run_settings(Settings(mode="tcd", solver_steps=50))
    assert (tcd.scheduler, tcd.scheduler_args) == ("TCDScheduler", {"eta": 0.3, "original_inference_steps": 50})
    short = run_settings(Settings(solver_steps=2))
    assert (short.steps_min, short.steps, short.steps_max) == (1, 2, 2)


def test_bases_are_loaded_from_folders(place: Path, tmp_path: Path) -> None:
    assert load_base(str(place / "base")).unet.dtype == torch.float32
    assert load_base(str(place / "base"), "bf16").unet.dtype == torch.bfloat16
    with pytest.raises(UsageError, match="base: name the folder"):
        load_base("")
    with pytest.raises(NotFoundError, match="model_index"):
        load_base(str(tmp_path / "none"))
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(FileFormatError, match="cannot be loaded"):
        load_base(str(tmp_path))


def test_a_saved_sdxl_is_told_apart_by_what_it_holds(tmp_path: Path) -> None:
    from lorahub.distill.conditioning import has_pooled

    sdxl().save_pretrained(tmp_path / "base")
    assert has_pooled(load_base(str(tmp_path / "base")))
