"""lorahub rebuild, and --name of the commands that make files"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import SCRIPT, Run


@pytest.fixture
def library(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAHUB_HOME", str(folder / "home"))
    assert run("add", "style.safetensors").exit_code == 0
    assert run("add", "lcm.safetensors").exit_code == 0
    return folder


def test_a_registered_result_is_rebuilt(library: Path, run: Run) -> None:
    made = run("combine", "0.8*style + 1.0*lcm", "--name", "fast", "--tag", "quick", "--rank", "2")
    assert made.exit_code == 0, made.output
    assert made.stdout.splitlines()[0].startswith("fast:1: sd15, kohya, fp16, ")
    assert made.stdout.splitlines()[-1] == "  registered as fast:1, made of 0.8 x style:1, 1 x lcm:1"
    result = run("rebuild", "fast", "-o", "again.safetensors")
    assert result.exit_code == 0, result.output
    first, expression, *_, last = result.stdout.splitlines()
    assert first.startswith("fast:1: identical, data sha256 ")
    assert expression == "  truncate(0.8*style:1 + 1*lcm:1, rule=fixed(2))"
    assert last == "  written to again.safetensors"
    assert json.loads(run("rebuild", "fast", "--json").stdout)["file_identical"] is True


def test_a_merge_is_rebuilt_from_the_registry_and_from_its_file(library: Path, run: Run) -> None:
    how = ["--method", "dare_ties", "-s", "density=0.5", "-s", "seed=11", "--orthogonal-to", "lcm", "--normalise"]
    made = run("combine", "0.8*style + 1.0*lcm", "--name", "m", "-o", "m.safetensors", "--rank", "3", *how, "--json")
    assert made.exit_code == 0, made.output
    facts = json.loads(made.stdout)
    weights = {parent["reference"]: parent["weight"] for parent in facts["parents"]}
    assert weights == {"style:1": pytest.approx(0.8 * facts["factor"]), "lcm:1": pytest.approx(facts["factor"])}
    assert json.loads(run("rebuild", "m", "--json").stdout)["file_identical"] is True
    proof = json.loads(run("rebuild", "m.safetensors", "--json").stdout)
    assert proof["data_sha256"] == facts["data_sha256"]
    other = ["--method", "dare_ties", "-s", "density=0.5", "-s", "seed=12", *how[6:]]
    assert run("combine", "0.8*style + 1.0*lcm", "-o", "o.safetensors", "--rank", "3", *other).exit_code == 0
    told = [
        json.loads(run("inspect", name, "--hash", "--json").stdout)["files"][0]
        for name in ("m.safetensors", "o.safetensors")
    ]
    assert told[0]["provenance"]["method"] == "dare_ties"
    assert told[0]["provenance"]["settings"]["merge"]["seed"] == 11
    assert told[0]["hashes"]["data_sha256"] != told[1]["hashes"]["data_sha256"]


def test_a_name_and_a_file(library: Path, run: Run) -> None:
    made = json.loads(
        run("resize", "style", "--rank", "1", "--name", "small", "-o", "small.safetensors", "--json").stdout
    )
    assert made["output"] == "small.safetensors"
    assert made["registered"]["reference"] == "small:1"
    assert [parent["reference"] for parent in made["parents"]] == ["style:1"]
    assert (library / "small.safetensors").is_file()
    only = json.loads(run("convert", "style", "--to", "diffusers", "--name", "other", "--json").stdout)
    assert only["output"] is None


def test_a_lost_parent_is_4_and_a_changed_recipe_7(library: Path, run: Run, refused: Callable[..., str]) -> None:
    assert run("combine", "style - lcm", "-o", "out.safetensors", "--dtype", "fp32").exit_code == 0
    assert run("remove", "lcm").exit_code == 0
    assert "the parent 'lcm:1'" in refused(4, "rebuild", "out.safetensors")
    assert run("rebuild", "out.safetensors", "--parent", ".").exit_code == 0
    whole = (library / "out.safetensors").read_bytes()
    assert whole.count(b"-1.0") == 2  # the weights, and the recipe
    (library / "changed.safetensors").write_bytes(whole.replace(b"-1.0", b"-1.5"))
    assert "cannot be reproduced here" in refused(7, "rebuild", "changed.safetensors", "--parent", ".")


def test_misuse(library: Path, misused: Callable[..., str], refused: Callable[..., str]) -> None:
    assert misused("combine", "style + lcm").startswith("Missing option '-o' / '--output'")
    assert "cannot be an adapter name" in misused("combine", "style + lcm", "--name", "a/b")
    assert "one file" in refused(2, "combine", "style + lcm", "--name", "x", "--format", "peft")


def test_kill_leaves_nothing_that_is_half_registered(library: Path, run: Run) -> None:
    """Killed at 12 points of combine --name: whatever is registered is whole, and doing it again completes it."""
    for step in range(12):
        command = [SCRIPT, "combine", f"{1 + step / 10}*style + lcm", "--name", f"k{step}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
        time.sleep(1.0 + step * 0.15)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert run("verify", "--all").exit_code == 0
    assert run("combine", "style + lcm", "--name", "k0").exit_code == 0
    assert run("rebuild", "k0").exit_code == 0
