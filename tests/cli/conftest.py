"""Ways to run the command line: in this process, and as the installed script in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lorahub.cli import main
from tests.cli import adapters

SCRIPT = Path(sys.executable).with_name("lorahub")

Run = Callable[..., Result]


@pytest.fixture(autouse=True, scope="session")
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No registry of the person who runs the tests; one thread for each of the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAHUB_HOME", str(tmp_path_factory.mktemp("home") / "none"))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with style.safetensors (kohya) and lcm.safetensors (diffusers) in it."""
    monkeypatch.chdir(tmp_path)
    adapters.style(tmp_path)
    adapters.lcm(tmp_path)
    return tmp_path


@pytest.fixture
def run() -> Run:
    """Run the command line in this process."""

    def invoke(*arguments: str | Path) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="lorahub")

    return invoke


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """Run a command that must fail with the code given; returns its one line on standard error."""

    def invoke(code: int, *arguments: str | Path) -> str:
        before = sorted(Path.cwd().rglob("*"))
        result = run(*arguments)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        lines = result.stderr.splitlines()
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("Error: ")
        assert lines[0].isprintable()
        assert sorted(Path.cwd().rglob("*")) == before, "a failure must write nothing"
        return lines[0].removeprefix("Error: ")

    return invoke


@pytest.fixture
def misused(run: Run) -> Callable[..., str]:
    """Run a command that click itself refuses; returns what follows the usage line."""

    def invoke(*arguments: str | Path) -> str:
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        usage, _, message = result.stderr.partition("\nError: ")
        assert usage.startswith("Usage: lorahub ")
        return message.strip()

    return invoke


def script(*arguments: str | Path | bytes, **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run the installed `lorahub` in a process of its own; `env` adds to this one's environment."""
    env = {**os.environ, **options.pop("env", {})}  # type: ignore[dict-item]
    return subprocess.run([SCRIPT, *arguments], capture_output=True, env=env, timeout=180, **options)  # type: ignore[call-overload, no-any-return]
