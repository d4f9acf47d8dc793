"""lorahub list: which rows, in which order, for people and for programs."""

from __future__ import annotations

import json
import os
import pty
from pathlib import Path

import pytest

from tests.cli.catalogue import filled as filled
from tests.cli.conftest import SCRIPT, Run, script

NAMES = ["evil:1", "lcm:1", "style:2"]


def test_a_pipe_gets_one_line_of_tabs_for_each_adapter(filled: Path, run: Run) -> None:
    result = run("list")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "evil:1\t-\tother\t-\t4\t'=cmd()\t-",
        "lcm:1\tsdxl\tacceleration\t64\t3\t-\t-",
        "style:2\tsd15\tstyle\t16\t8\twarm\tprod=1",
    ]
    assert result.stderr == ""


def test_a_terminal_gets_an_aligned_table(filled: Path) -> None:
    """A real terminal, of which the other end is read."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(SCRIPT, [str(SCRIPT), "list"])
    output = b""
    while True:
        try:
            data = os.read(terminal, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not data:
            break
        output += data
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert output.decode().split("\r\n") == [
        "ADAPTER  BASE  KIND          RANK  SIZE  TAGS    ALIASES",
        "evil:1   -     other         -     4 B   =cmd()  -",
        "lcm:1    sdxl  acceleration  64    3 B   -       -",
        "style:2  sd15  style         16    8 B   warm    prod=1",
        "",
    ]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--base", "SDXL"], ["lcm:1"]),
        (["--rank", "16"], ["style:2"]),
        (["--rank", "17:"], ["lcm:1"]),
        (["--rank", ":16"], ["evil:1", "style:2"]),
        (["--rank", "16:64"], ["lcm:1", "style:2"]),
        (["--kind", "style"], ["style:2"]),
        (["--tag", "warm"], ["style:2"]),
        (["--format", "peft"], []),
        (["--sort", "-size"], ["style:2", "evil:1", "lcm:1"]),
        (["--sort", "created"], ["style:2", "lcm:1", "evil:1"]),
        (["--limit", "0"], NAMES),
    ],
)
def test_filters(filled: Path, run: Run, options: list[str], names: list[str]) -> None:
    result = run("list", "-q", *options)
    assert (result.exit_code, result.stdout.splitlines(), result.stderr) == (0, names, "")


def test_a_limit_that_cuts_something_off_says_so(filled: Path, run: Run) -> None:
    result = run("list", "-q", "--limit", "1")
    assert result.stdout == "evil:1\n"
    assert result.stderr == "These are the first 1: `--limit 0` prints all.\n"
    assert run("list", "-q", "--limit", "3").stderr == ""


def test_json_has_numbers_and_all_fields(filled: Path, run: Run) -> None:
    result = json.loads(run("list", "--json", "--kind", "acceleration").stdout)
    assert (result["schema"], result["command"], result["more"]) == (1, "list", False)
    (adapter,) = result["adapters"]
    assert (adapter["name"], adapter["versions"], adapter["aliases"]) == ("lcm", [1], {})
    latest = adapter["latest"]
    assert (latest["reference"], latest["size"], latest["rank"]) == ("lcm:1", 3, 64)
    assert latest["run"]["guidance_max"] == 2.0


@pytest.mark.parametrize("rank", ["", "a", "8:4", ":", "-1", "1.5", "8:16:32", "٣"])
def test_a_rank_that_is_no_range_is_refused(run: Run, rank: str) -> None:
    result = run("list", "--rank", rank)
    assert result.exit_code == 2
    assert "range" in result.stderr


def test_an_empty_registry_prints_nothing(tmp_path: Path) -> None:
    done = script("list", env={"LORAHUB_HOME": str(tmp_path / "home")})
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_choices_are_those_of_the_registry() -> None:
    """They are written down again because `--help` may not import the registry."""
    from lorahub.cli import catalogue
    from registry import KINDS
    from registry.listing import SORTS

    assert KINDS == catalogue.KINDS
    assert tuple(SORTS) == catalogue.SORTS
