"""lorahub compatible"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli import adapters
from tests.cli.conftest import Run, script


@pytest.fixture
def home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAHUB_HOME", str(folder / "home"))
    return folder / "home"


def test_two_files(folder: Path, home: Path, run: Run) -> None:
    result = run("compatible", "style.safetensors", "lcm.safetensors")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "can be added: yes (sd15)",
        "should be added: yes",
        "  info: they reinforce one another (cosine 0.390): lower the weights",  # 2 / sqrt(5 * 5.25)
        "style.safetensors and lcm.safetensors: cosine 0.3904, norms 7.746 and 7.937, 12 layers in common",
        "  of the smaller subspace, 50.0% of what is written and 50.0% of what is read is in common (by chance 0.9%)",
    ]
    assert not home.exists(), "judging files makes no registry"


def test_json_has_numbers(folder: Path, home: Path, run: Run) -> None:
    result = json.loads(run("compatible", "style.safetensors", "lcm.safetensors", "--json").stdout)
    assert result["schema"] == 1
    assert result["can"] is True
    assert result["pairs"][0]["overlap_out"] == pytest.approx(0.5)
    light = json.loads(run("compatible", "style.safetensors", "lcm.safetensors", "--json", "--no-weights").stdout)
    assert light["pairs"] == []


def test_two_accelerators_exit_with_7(folder: Path, home: Path, run: Run) -> None:
    for name in ("lcm-lora-sdv1-5", "Hyper-SD15-4steps-lora"):
        adapters.write(folder / f"{name}.safetensors", adapters.diffusers_tensors())
    files = ["lcm-lora-sdv1-5.safetensors", "Hyper-SD15-4steps-lora.safetensors"]
    result = run("compatible", *files, "--no-weights")
    assert result.exit_code == 7
    assert "two acceleration vectors (lcm, hyper-sd), together at 2" in result.stdout
    assert run("compatible", *files, "--no-weights", "--weight", "0.5", "--weight", "0.5").exit_code == 0
    stopped = run("combine", " + ".join(files), "-o", "c.safetensors")
    assert stopped.exit_code == 6
    assert "--force" in stopped.stderr
    assert not (folder / "c.safetensors").exists()
    assert run("combine", " + ".join(files), "-o", "c.safetensors", "--force").exit_code == 0
    mean = run("combine", f"0.5*{files[0]} + 0.5*{files[1]}", "-o", "mean.safetensors")
    assert mean.exit_code == 0
    assert mean.stderr.splitlines()[0].startswith("Warning: lcm-lora-sdv1-5 and Hyper-SD15-4steps-lora are two")


def test_what_goes_with_one(folder: Path, home: Path, run: Run) -> None:
    assert run("add", "style.safetensors").exit_code == 0
    assert run("add", "lcm.safetensors").exit_code == 0
    run("similar", "--refresh")
    result = run("compatible", "--with", "lcm")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == "1 adapters for sd15 beside lcm"
    assert result.stdout.splitlines()[1].startswith("  yes        style:1  (other, cosine 0.")
    assert json.loads(run("compatible", "--with", "lcm", "--json").stdout)["partners"][0]["reference"] == "style:1"


def test_refusals(folder: Path, home: Path, refused: Callable[..., str], misused: Callable[..., str]) -> None:
    assert "name two adapters or more" in misused("compatible", "style.safetensors")
    assert "name two adapters or more" in misused("compatible", "a", "b", "--with", "c")
    assert "named twice" in misused("compatible", "a", "a")
    assert "1 weights for 2" in misused("compatible", "a", "b", "--weight", "1")
    assert refused(4, "compatible", "style.safetensors", "x.safetensors").startswith("no adapter 'x.safetensors'")


def test_records_are_judged_without_torch(folder: Path, home: Path) -> None:
    code = "import sys, lorahub.cli; lorahub.cli.main(['compatible', *sys.argv[1:]], standalone_mode=False)"
    ending = "; sys.exit('torch' in sys.modules)"
    import subprocess
    import sys

    script("add", "style.safetensors", "lcm.safetensors", "--no-weights")
    for arguments in (
        ["--with", "lcm"],
        ["style", "lcm", "--no-weights"],
        ["style.safetensors", "lcm", "--no-weights"],
    ):
        done = subprocess.run([sys.executable, "-c", code + ending, *arguments], capture_output=True, timeout=60)
        assert done.returncode == 0, (arguments, done.stderr)
