"""lorahub lineage"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Run


@pytest.fixture
def library(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAHUB_HOME", str(folder / "home"))
    for arguments in (
        ("add", "style.safetensors"),
        (
            "combine",
            "0.8*style + 1.0*lcm.safetensors",
            "--name",
            "fast",
            "--rank",
            "4",
            "--weight",
            "style",
            "to_k",
            "0.5",
        ),
        ("resize", "fast", "--name", "small", "--rank", "2"),
        ("combine", "small + style", "--name", "again", "--format", "diffusers", "--dtype", "fp32"),
    ):
        assert run(*arguments).exit_code == 0
    return folder


def test_the_tree(library: Path, run: Run) -> None:
    bare = hashlib.sha256((library / "lcm.safetensors").read_bytes()).hexdigest()[:12]
    assert run("lineage", "small").stdout.splitlines() == [
        "small:1 (merged, sd15)",
        "  made from",
        "  └─ 1 x fast:1 (merged, sd15)",
        "     ├─ 0.8 x style:1 (other, sd15)",
        f"     └─ 1 x lcm (sha256:{bare}, not registered)",
        "  part of",
        "  └─ again:1 (merged, sd15), 1 x this",
    ]


def test_depth_and_a_file(library: Path, run: Run) -> None:
    assert len(run("lineage", "again", "--depth", "1").stdout.splitlines()) == 4
    nothing = run("lineage", "lcm.safetensors").stdout.splitlines()
    assert nothing[1] == "  nothing is recorded of where it came from, or of what was made of it"
    assert run("lineage", "style.safetensors").stdout.splitlines()[0] == "style:1 (other, sd15)"
    assert run("resize", "small", "-o", "out.safetensors", "--rank", "1").exit_code == 0
    told = run("lineage", "out.safetensors").stdout.splitlines()
    assert told[2:] == ["  └─ 1 x small:1", "     └─ 1 x fast:1", "        ├─ 0.8 x style:1", "        └─ 1 x lcm"]


def test_json_and_dot(library: Path, run: Run) -> None:
    found = json.loads(run("lineage", "fast", "--json").stdout)
    assert {node["reference"] for node in found["nodes"]} == {"fast:1", "style:1", "small:1", "again:1", None}
    assert sorted(link["weight"] for link in found["links"]) == [0.8, 1.0, 1.0, 1.0]
    graph = run("lineage", "fast", "--dot").stdout
    assert graph.count(" -> ") == 4
    assert graph.startswith("digraph lineage {\n")
    if shutil.which("dot"):
        subprocess.run(["dot", "-Tsvg"], input=graph.encode(), check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("name", ["fast", "small", "again"])
def test_the_command_makes_the_same_weights(library: Path, run: Run, name: str) -> None:
    if name == "fast":
        assert run("add", "lcm.safetensors").exit_code == 0  # now it has a name
    line = run("lineage", name, "--command").stdout.strip()
    words = shlex.split(line)
    assert words[:2] == ["lorahub", "combine"]
    words[words.index("--name") + 1] = "made-again"
    assert run(*words[1:]).exit_code == 0, line
    hashes = [json.loads(run("rebuild", each, "--json").stdout)["data_sha256"] for each in (name, "made-again")]
    assert hashes[0] == hashes[1]


def test_refusals(library: Path, run: Run) -> None:
    assert run("lineage", "nobody").exit_code == 4
    assert run("lineage", "style", "--command").exit_code == 4
