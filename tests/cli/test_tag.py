"""lorahub tag, untag"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.catalogue import filled as filled
from tests.cli.conftest import Run, script


def tags(run: Run, reference: str) -> list[str]:
    return json.loads(run("show", reference, "--json").stdout)["record"]["tags"]  # type: ignore[no-any-return]


def test_on_and_off(filled: Path, run: Run) -> None:
    assert run("tag", "lcm", "fast", "two words").stdout == "tagged lcm:1\n"
    assert run("tag", "lcm", "fast").exit_code == 0
    assert tags(run, "lcm") == ["fast", "two words"]
    assert run("list", "-q", "--tag", "two words").stdout == "lcm:1\n"
    assert run("untag", "lcm", "fast", "never there").stdout == "untagged lcm:1\n"
    assert tags(run, "lcm") == ["two words"]


def test_several_at_once(filled: Path, run: Run) -> None:
    assert run("tag", "lcm", "all", "--also", "style:1", "--also", "evil").exit_code == 0
    assert [tags(run, name) for name in ("lcm", "style:1")] == [["all"], ["all", "warm"]]
    assert run("untag", "lcm", "all", "--also", "nobody").exit_code == 4
    assert tags(run, "lcm") == ["all"]
    done = script("untag", "-", "all", input=b"lcm\nstyle:1\n")
    assert done.stdout == b"untagged lcm:1\nuntagged style:1\n"


def test_a_dry_run_changes_nothing(filled: Path, run: Run) -> None:
    assert run("tag", "lcm", "fast", "--dry-run").stdout == "would have tagged lcm:1\n"
    assert run("untag", "style", "warm", "--dry-run").stdout == "would have untagged style:2\n"
    assert (tags(run, "lcm"), tags(run, "style")) == ([], ["warm"])


@pytest.mark.parametrize("tag", ["", "a,b", "x\ny", "x" * 65, "\x1b[31m"])
def test_what_is_no_tag(filled: Path, run: Run, tag: str) -> None:
    result = run("tag", "lcm", "good", tag)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert "\x1b" not in result.stderr
    assert tags(run, "lcm") == []
