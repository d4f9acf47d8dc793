"""How failures are told: one line and an exit code, more only on demand."""

from __future__ import annotations

import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from lorahub import errors
from lorahub.cli import Commands
from tests.cli.conftest import SCRIPT, Run

CODES = {
    errors.LorahubError: 1,
    errors.FileFormatError: 1,
    errors.BaseMismatchError: 1,
    errors.NotAdditiveError: 1,
    errors.UsageError: 2,
    errors.AuthError: 3,
    errors.NotFoundError: 4,
    errors.NetworkError: 5,
    errors.ConflictError: 6,
    errors.VerificationError: 7,
    errors.PartialError: 8,
    MemoryError: 1,
    OSError: 1,
    KeyboardInterrupt: 130,
}


def failing(error: BaseException) -> click.Group:
    """The real group around a command that raises."""

    @click.command()
    def command() -> None:
        raise error

    class Group(Commands):
        def get_command(self, context: click.Context, name: str) -> click.Command:
            return command

    @click.group(cls=Group)
    @click.option("--debug", is_flag=True)
    def group(debug: bool) -> None: ...

    return group


@pytest.mark.parametrize("kind", CODES)
def test_every_class_has_its_exit_code(kind: type[BaseException]) -> None:
    result = CliRunner().invoke(failing(kind("what happened")), ["x"])
    assert result.exit_code == CODES[kind]
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1


def test_every_error_is_in_the_table() -> None:
    tree = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.LorahubError)}
    assert tree <= CODES.keys()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (errors.NotFoundError("no such\n  file \x1b[2J"), "Error: no such file \\x1b[2J"),
        (FileNotFoundError(2, "No such file", "a b"), "Error: a b: No such file"),
        (MemoryError(), "Error: not enough memory"),
        (KeyboardInterrupt(), "Interrupted."),
        (
            RuntimeError("odd"),
            "Error: unexpected RuntimeError: odd (`lorahub --debug ...` shows where; please report it)",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_one_line(error: BaseException, line: str) -> None:
    assert CliRunner().invoke(failing(error), ["x"]).stderr == f"{line}\n"


def test_debug_shows_the_traceback_and_keeps_the_code(folder: Path, run: Run) -> None:
    result = run("--debug", "inspect", "nothing.safetensors")
    assert result.exit_code == 4
    assert result.stderr.startswith("Traceback (most recent call last):\n")
    assert "references.py" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: no adapter 'nothing.safetensors'")


def test_the_disk_is_full(folder: Path) -> None:
    """A limit on the size of files stands in for a disk: the write fails in the middle."""
    limited = f"ulimit -f 8; exec '{SCRIPT}' combine style.safetensors -o x.safetensors"
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: cannot write x.safetensors: File too large\n"
    assert sorted(path.name for path in folder.iterdir()) == ["lcm.safetensors", "style.safetensors"]
