"""lorahub similar"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Run


@pytest.fixture
def library(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAHUB_HOME", str(folder / "home"))
    for arguments in (
        ("add", "style.safetensors"),
        ("add", "lcm.safetensors"),
        ("combine", "style + 0.5*lcm", "--name", "mix"),
        ("similar", "--refresh"),
    ):
        assert run(*arguments).exit_code == 0
    return folder


def test_the_nearest_come_first(library: Path, run: Run) -> None:
    result = run("similar", "style")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "style: sd15, norm 7.746, compared with 3 sketches",
        "  0.9307  mix:1  (1.2 of it along the same line)",  # 6 / sqrt(5 * (5 + 2 + 5.25 / 4))
        "  0.3904  lcm:1  (0.4 of it along the same line)",
    ]


def test_a_copy_in_another_spelling(library: Path, run: Run) -> None:
    assert run("convert", "style.safetensors", "--to", "diffusers", "-o", "again.safetensors").exit_code == 0
    found = json.loads(run("similar", "again.safetensors", "--limit", "1", "--json").stdout)["found"]
    assert found["matches"][0]["reference"] == "style:1"
    assert found["matches"][0]["cosine"] == pytest.approx(1)
    guess = run("similar", "again.safetensors", "--estimate", "--limit", "1")
    assert guess.stdout.splitlines()[1].startswith("  about 1.0000  style:1")


def test_what_has_no_sketch_is_counted(library: Path, run: Run) -> None:
    assert run("convert", "style.safetensors", "--to", "diffusers", "-o", "again.safetensors").exit_code == 0
    assert run("add", "again.safetensors", "--no-weights").exit_code == 0
    result = run("similar", "style")
    assert result.stderr == "1 adapters have no sketch and were not looked at: `lorahub similar --refresh`\n"
    refreshed = run("similar", "style", "--refresh")
    assert refreshed.stdout.splitlines()[0] == "1 sketches made"
    assert "  1.0000  again:1" in refreshed.stdout


def test_a_lost_file_makes_it_partial(library: Path, run: Run) -> None:
    assert run("add", "lcm.safetensors", "--in-place", "--name", "lost", "--no-weights").exit_code == 0
    (library / "lcm.safetensors").unlink()
    result = run("similar", "--refresh")
    assert result.exit_code == 8
    assert "not lost:1: the file of lost:1 is missing" in result.stdout


def test_refusals(library: Path, misused: Callable[..., str], run: Run) -> None:
    assert misused("similar") == "name an adapter, or pass --refresh"
    assert run("similar", "nobody").exit_code == 4
