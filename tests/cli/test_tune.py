"""`lorahub tune` as it is typed, on a tiny pipeline in a folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import lorahub as lh
from lorahub.expression import parse
from tests.cli.conftest import Run
from tests.validate import pipes
from tests.validate.test_generating import adapter

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
]
TEXT = "0.8*style.safetensors + 1*fast.safetensors"


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The current directory, with two adapters and `base/`; and what to type, with eight pictures to draw."""
    monkeypatch.chdir(tmp_path)
    pipe = pipes.sd15()
    for name, seed in (("style", 1), ("fast", 2)):
        lh.save(adapter(pipe, seed), tmp_path / f"{name}.safetensors", format="diffusers")
    pipe.save_pretrained(tmp_path / "base")
    drawn = ["--prompt", "a cat", "--seeds", "0,7", "--steps", "2", "--reference-steps", "3", "--sampler", "ddim"]
    return ["tune", TEXT, "--base-model", "base", "--device", "cpu", *drawn, "--budget", "10", "--score", "psnr"]


def test_it_prints_the_expression_to_use(run: Run, words: list[str]) -> None:
    words += ["--vary", "fast.safetensors=0.5:1.5:0.25", "--pictures", "pictures"]
    shown = run(*words, "-o", "tuned.html")
    assert shown.exit_code == 0, shown.output
    told = run(*words, "--json")
    assert told.exit_code == 0, told.output
    result = json.loads(told.stdout)
    lines = shown.stdout.splitlines()
    assert lines[0] == f"{TEXT} at 2 steps, 10 pictures"
    assert lines[1].split()[:2] == ["fast.safetensors", "psnr"]
    assert len([line for line in lines if line.startswith("* ")]) == 1
    assert lines[-1] == f"lorahub combine '{result['expression']}' -o tuned.safetensors"
    assert len(result["trials"]) == 3, "ten pictures: with and without the adapters at many steps, three candidates"
    values = [trial["value"] for trial in result["trials"]]
    assert result["best"] == values.index(max(values))
    weights = {term.reference: term.weight for term in parse(result["expression"])}
    assert weights["style.safetensors"] == 0.8
    assert weights["fast.safetensors"] == result["trials"][result["best"]]["coefficients"]["fast.safetensors"]
    page = Path("tuned.html").read_text(encoding="utf-8")
    assert "lorahub tune" in page
    assert result["ran"].startswith(f"lorahub tune '{TEXT}' --base-model base --device cpu")
    assert len([*Path("pictures").glob("*.png")]) == 10, "the second run drew none"


def test_what_is_refused(words: list[str], refused: Callable[..., str], misused: Callable[..., str]) -> None:
    assert "no term is known to accelerate: say which to vary" in refused(2, *words)
    assert "cannot tune for 'beauty': expected one of psnr" in refused(2, *words, "--score", "beauty")
    vary = ["--vary", "fast.safetensors=0.5:1.5"]
    assert "a budget of 3 pictures is too small" in refused(2, *words, *vary, "--budget", "3")
    assert "expected more than the 4 steps" in refused(2, *words, *vary, "--steps", "4")
    assert "say what to draw with --prompt" in misused("tune", TEXT, "--base-model", "base")
    assert "Missing option '--base-model'" in misused("tune", TEXT)


def test_without_optuna(words: list[str], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert refused(1, *words) == "tune needs optuna: pip install 'lorahub-toolkit[validate]'"
