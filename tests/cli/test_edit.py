"""lorahub edit: overrides stick, are taken back only on request, and apply to all named or to none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorahub.workspace.core import Workspace
from tests.cli.catalogue import filled as filled, put
from tests.cli.conftest import Run, script


def record(run: Run, reference: str) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(run("show", reference, "--json").stdout)
    return shown["record"]  # type: ignore[no-any-return]


def test_every_field(filled: Path, run: Run) -> None:
    result = run(
        *("edit", "style:2", "--base", "SDXL", "--kind", "slider", "--licence", "cc0", "--note", "new"),
        *("--trigger", "a b", "--trigger", "c", "--scheduler", "DDIMScheduler", "--steps", "4:8", "--guidance", "1.5"),
        *("--lora-scale", "-0.5"),
    )
    assert (result.exit_code, result.stdout, result.stderr) == (0, "edited style:2\n", "")
    now = record(run, "style:2")
    assert (now["base"], now["kind"], now["licence"], now["notes"]) == ("sdxl", "slider", "cc0", "new")
    assert now["trigger_words"] == ["a b", "c"]
    expected = {"scheduler": "DDIMScheduler", "steps": 4, "steps_min": 4, "steps_max": 8, "lora_scale": -0.5}
    assert expected.items() <= now["run"].items()
    assert (now["run"]["guidance_min"], now["run"]["guidance_max"]) == (1.5, 1.5)
    assert now["base_detected"] == "sd15"
    assert record(run, "style:1")["kind"] == "style"


def test_a_run_setting_changes_alone(filled: Path, run: Run) -> None:
    before = record(run, "lcm")["run"]
    run("edit", "lcm", "--lora-scale", "0.7")
    assert record(run, "lcm")["run"] == before | {"lora_scale": 0.7}
    run("edit", "lcm", "--reset", "run", "--steps", "6")
    assert record(run, "lcm")["run"]["steps"] == 6
    assert record(run, "lcm")["run"]["lora_scale"] is None
    run("edit", "lcm", "--reset", "run")
    assert record(run, "lcm")["run"] == before


def test_an_override_outlives_the_same_file_read_again(filled: Path, run: Run) -> None:
    run("edit", "style:2", "--base", "flux1")
    with Workspace.open() as workspace:
        put(workspace, "style", b"style 2!", base_detected="sd15")
    assert record(run, "style:2")["base"] == "flux1"
    run("edit", "style:2", "--reset", "base")
    assert record(run, "style:2")["base"] == "sd15"


def test_all_are_changed_or_none(filled: Path, run: Run) -> None:
    result = run("edit", "style:1", "lcm", "nobody", "--note", "bulk")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "nobody" in result.stderr
    assert record(run, "style:1")["notes"] == record(run, "lcm")["notes"] == ""
    assert run("edit", "style:1", "lcm", "--note", "bulk").stdout == "edited style:1\nedited lcm:1\n"
    assert record(run, "style:1")["notes"] == record(run, "lcm")["notes"] == "bulk"


def test_references_from_standard_input(filled: Path) -> None:
    done = script("edit", "-", "--note", "piped", input=script("list", "-q").stdout)
    assert done.stdout.decode().splitlines() == ["edited evil:1", "edited lcm:1", "edited style:2"]
    done = script("edit", "-", "--note", "piped", input=b"\n")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"standard input holds no reference" in done.stderr


def test_a_dry_run_says_what_it_would_do_and_leaves_every_byte(filled: Path, run: Run) -> None:
    before = {path: path.read_bytes() for path in filled.rglob("*") if path.is_file()}
    result = run("edit", "style", "--base", "flux1", "--dry-run", "--json")
    assert json.loads(result.stdout)["versions"][0]["base"] == "flux1"
    assert run("edit", "style", "--base", "flux1", "--dry-run").stdout == "would have edited style:2\n"
    assert run("edit", "nobody", "--base", "flux1", "--dry-run").exit_code == 4
    assert {path: path.read_bytes() for path in filled.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["--base", "nosuchbase"],
        ["--kind", "nosuchkind"],
        ["--reset", "notes"],
        ["--steps", "0.5"],
        ["--guidance", "2:1"],
        ["--lora-scale", "nan"],
    ],
)
def test_what_is_refused(filled: Path, run: Run, wrong: list[str]) -> None:
    result = run("edit", "style", *wrong)
    assert result.exit_code in (2, 4)
    assert result.stdout == ""
    assert "Error: " in result.stderr
