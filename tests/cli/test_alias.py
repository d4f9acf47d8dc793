"""lorahub alias, rename: words for versions, and who moved them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.catalogue import filled as filled
from tests.cli.conftest import Run


def test_point_move_delete_and_remember(filled: Path, run: Run) -> None:
    assert run("alias", "style:1", "best").stdout == "pointed @best at style:1\n"
    assert run("alias", "style", "best").stdout == "pointed @best at style:2\n"
    assert run("show", "style@best").stdout.startswith("style:2: ")
    assert run("alias", "style", "best", "--delete").stdout == "removed style@best\n"
    assert run("show", "style@best").exit_code == 4
    moves = json.loads(run("alias", "style", "best", "--history", "--json").stdout)["history"]
    assert [(move["previous"], move["number"]) for move in moves] == [(None, 1), (1, 2), (2, None)]
    rows = [line.split("\t")[:3] for line in run("alias", "style", "--history").stdout.splitlines()]
    assert rows == [["prod", "-", "1"], ["best", "-", "1"], ["best", "1", "2"], ["best", "2", "-"]]


def test_a_dry_run_changes_nothing(filled: Path, run: Run) -> None:
    assert run("alias", "style:2", "prod", "--dry-run").stdout == "would have pointed @prod at style:2\n"
    assert run("alias", "style", "prod", "--delete", "--dry-run").stdout == "would have removed style@prod\n"
    assert run("show", "style@prod").stdout.startswith("style:1: ")
    assert run("rename", "style", "new", "--dry-run").stdout == "would have renamed style to new:2\n"
    assert run("show", "new").exit_code == 4


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["style"], 2),
        (["style", "a/b"], 2),
        (["style", "x", "--delete", "--history"], 2),
        (["style", "nobody", "--delete"], 4),
        (["nobody", "--history"], 4),
    ],
)
def test_what_is_refused(filled: Path, run: Run, arguments: list[str], code: int) -> None:
    result = run("alias", *arguments)
    assert (result.exit_code, result.stdout) == (code, "")


def test_rename_takes_everything_along(filled: Path, run: Run) -> None:
    assert run("rename", "style", "Look").stdout == "renamed style to Look:2\n"
    assert run("show", "look@prod").stdout.startswith("Look:1: ")
    assert run("search", "-q", "look").stdout == "Look:2\n"
    assert run("search", "-q", "style:2").stdout == ""
    assert run("show", "style").exit_code == 4


@pytest.mark.parametrize(
    ("new", "code"),
    [("lcm", 6), ("LCM", 6), ("../up", 2), ("a:b", 2), ("nul", 2), ("x" * 300, 2), ("\x1b[31m", 2), ("=cmd", 2)],
)
def test_names_that_are_taken_or_are_none(filled: Path, run: Run, new: str, code: int) -> None:
    result = run("rename", "style", new)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.removesuffix("\n").isprintable()
    assert run("list", "-q").stdout.splitlines() == ["evil:1", "lcm:1", "style:2"]
