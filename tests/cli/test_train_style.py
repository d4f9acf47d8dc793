"""lorahub train-style, from a TOML file to a registered file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.distill import data_files, tiny

CONFIG = """
base = "base"
output = "style.safetensors"
name = "halftone"
trigger_words = ["dots"]
rank = 2
steps = 2
batch_size = 2
[data]
folder = "pictures"
cache = "cache"
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a base, three pictures and style.toml in it, and a registry of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAHUB_HOME", str(tmp_path / "home"))
    tiny.sd().save_pretrained(tmp_path / "base")
    data_files.folder(tmp_path / "pictures", {"a.png": "red star", "b.png": "blue ring", "c/d.png": "red ring"})
    (tmp_path / "style.toml").write_text(CONFIG)
    return tmp_path


def test_from_pictures_to_a_registered_style(place: Path, run: Run) -> None:
    result = run("train-style", "style.toml", "-s", "rank=3", "-s", "data.flip=true")
    assert result.exit_code == 0, result.output
    first, *rest = result.stdout.splitlines()
    assert first.startswith("style.safetensors: 32 layers, rank 3, ")
    assert rest[:2] == ["  loaded back and compared: it answers as the trained network", "  registered as halftone:1"]
    assert rest[2].startswith("  2 steps, loss ")
    assert (place / "cache").is_dir()
    shown = json.loads(run("show", "halftone", "--json").stdout)
    assert "dots" in json.dumps(shown)
    refused = run("train-style", "style.toml")
    assert (refused.exit_code, refused.stderr.splitlines()[-1][:33]) == (6, "Error: style.safetensors exists a")
    again = run(
        "train-style", "style.toml", "-s", "rank=3", "-s", "data.flip=true", "-s", "force=true", "--resume", "--json"
    )
    facts = json.loads(again.stdout)
    assert facts["loss"] is None  # nothing was left to do
    assert facts["command"] == "train-style"
    assert facts["registered"].startswith("halftone:")


def test_what_cannot_be_is_said_before_anything_is_loaded(place: Path, refused: Callable[..., str]) -> None:
    for words, code, message in (
        (["-s", "w_min=3"], 2, "w_min: no such setting"),
        (["-s", "output=", "-s", "name="], 2, "output: name the file to write"),
        (["-s", "name=a/b"], 2, "a/b"),
        (["-s", "data=3"], 2, "[data]: say what to train on"),
        (["-s", "base="], 2, "base"),
        (["-s", "base=./nowhere"], 4, "base"),
    ):
        assert message in refused(code, "train-style", "style.toml", *words)
    assert "none.toml" in refused(4, "train-style", "none.toml")
