"""lorahub search: every word must be found; what people type is never taken for a query language."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.catalogue import filled as filled
from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["sci"], ["style:2"]),
        (["paper", "style"], ["style:2"]),
        (["paper style"], ["style:2"]),
        (['"paper and scissors"'], ["style:2"]),
        (['"scissors paper"'], []),
        (["acceleration"], ["lcm:1"]),
        (["style", "--base", "sdxl"], []),
        (["nothing"], []),
        (["name:style OR 1=1 --"], []),
    ],
)
def test_words(filled: Path, run: Run, words: list[str], names: list[str]) -> None:
    arguments = words if "--base" in words else ["--", *words]
    result = run("search", "-q", *arguments)
    assert (result.exit_code, result.stdout.splitlines()) == (0, names), result.stderr


def test_a_query_without_a_word_is_refused(filled: Path, run: Run) -> None:
    result = run("search", "***")
    assert (result.exit_code, result.stderr) == (2, "Error: expected 1 to 32 words to search for, got '***'\n")
    assert run("search").exit_code == 2


def test_output_is_as_of_list(filled: Path, run: Run) -> None:
    assert run("search", "lcm").stdout == run("list", "--base", "sdxl").stdout
    assert json.loads(run("search", "lcm", "--json").stdout)["adapters"][0]["name"] == "lcm"
