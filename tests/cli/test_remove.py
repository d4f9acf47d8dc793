"""lorahub remove, restore: the trash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.catalogue import filled as filled
from tests.cli.conftest import Run


def names(run: Run) -> list[str]:
    return run("list", "-q").stdout.splitlines()  # type: ignore[no-any-return]


def test_out_and_back(filled: Path, run: Run) -> None:
    files = sorted(path for path in (filled / "store").rglob("*") if path.is_file())
    assert run("remove", "style:2", "lcm").stdout == "removed style:2\nremoved lcm:1\n"
    assert names(run) == ["evil:1", "style:1"]
    assert "run `lorahub restore lcm`" in run("show", "lcm").stderr
    rows = [line.split("\t")[:4] for line in run("restore", "--list").stdout.splitlines()]
    assert rows == [["lcm:1", "sdxl", "acceleration", "3"], ["style:2", "sd15", "style", "8"]]
    assert [each["name"] for each in json.loads(run("restore", "--list", "--json").stdout)["trash"]] == ["lcm", "style"]
    assert run("restore", "lcm", "style").stdout == "restored lcm:1\nrestored style:2\n"
    assert names(run) == ["evil:1", "lcm:1", "style:2"]
    assert sorted(path for path in (filled / "store").rglob("*") if path.is_file()) == files


@pytest.mark.parametrize("reference", ["style:1", "style", "style@prod"])
def test_what_has_an_alias_stays_and_the_command_to_run_is_named(filled: Path, run: Run, reference: str) -> None:
    result = run("remove", "lcm", reference)
    assert (result.exit_code, result.stdout) == (6, "")
    assert result.stderr == "Error: style:1 is style@prod: run `lorahub alias style prod --delete` first\n"
    assert names(run) == ["evil:1", "lcm:1", "style:2"]
    command = result.stderr.split("`")[1].split()[1:]
    assert run(*command).exit_code == 0
    assert run("remove", "style").stdout == "removed style:1\nremoved style:2\n"


def test_a_dry_run_moves_nothing(filled: Path, run: Run) -> None:
    assert run("remove", "lcm", "--dry-run").stdout == "would have removed lcm:1\n"
    assert run("remove", "style", "--dry-run").exit_code == 6
    assert names(run) == ["evil:1", "lcm:1", "style:2"]
    run("remove", "lcm")
    assert run("restore", "lcm", "--dry-run").stdout == "would have restored lcm:1\n"
    assert names(run) == ["evil:1", "style:2"]


def test_all_or_none(filled: Path, run: Run) -> None:
    assert run("remove", "lcm", "lcm").exit_code == 4
    assert names(run) == ["evil:1", "lcm:1", "style:2"]
    run("remove", "lcm")
    assert run("restore", "lcm", "evil").exit_code == 4
    assert names(run) == ["evil:1", "style:2"]


@pytest.mark.parametrize("arguments", [[], ["lcm", "--list"], ["--list", "--backup", "x"], ["lcm", "--backup", "x"]])
def test_restore_wants_one_thing(run: Run, arguments: list[str]) -> None:
    result = run("restore", *arguments)
    assert result.exit_code == 2
    assert "either" in result.stderr
