"""Every command explains itself, with examples that are true to its grammar."""

from __future__ import annotations

import io
import re
import shlex
import sys

import click
import pytest

from lorahub.cli import COMMANDS, main
from tests.cli.conftest import Run


def examples(text: str) -> list[str]:
    lines = text.partition("Example")[2].splitlines()[1:]
    block = []
    for line in lines:
        if not line.strip():
            break
        block.append(line.strip())
    return block


def test_the_group(run: Run) -> None:
    text = run("--help").stdout
    assert run().output == text
    assert run("-h").stdout == text
    for name in COMMANDS:
        assert re.search(rf"^  {name}  +[A-Z]", text, re.MULTILINE)
    assert "130 interrupted" in text
    assert run("--version").stdout == "lorahub, version 0.1.0\n"


def commands_in(example: str) -> list[list[str]]:
    """The words after `lorahub` of every run of it in a line: `lorahub a > x`, `lorahub a | xargs lorahub b`."""
    runs = re.findall(r"\blorahub ((?:'[^']*'|\"[^\"]*\"|[^|>#])*)", example)
    return [shlex.split(words) for words in runs]


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_examples_parse(run: Run, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(*([name] if name else []), "--help")
    assert result.exit_code == 0
    found = [words for example in examples(result.stdout) for words in commands_in(example)]
    assert found, "every --help has an example"
    assert not name or name in [words[0] for words in found]
    monkeypatch.setattr(sys, "stdin", io.StringIO("style\n"))  # for `lorahub a | lorahub b -`
    for words in found:
        command = main.get_command(click.Context(main), words[0])
        assert command is not None
        command.make_context(words[0], words[1:])  # raises when the grammar is broken


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert parameter.help.endswith((".", "]")), parameter.name
    assert command.short_help


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "completion"])
def test_every_command_that_answers_has_json(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    if isinstance(command, click.Group):
        pytest.skip(f"lorahub {name} is a group: its commands answer")
    assert "--json" in [flag for parameter in command.params for flag in parameter.opts]


def test_an_unknown_command(run: Run) -> None:
    result = run("combnie")
    assert result.exit_code == 2
    assert "No such command 'combnie'" in result.stderr
