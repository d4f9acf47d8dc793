"""What keeps the code easy to find, read and replace: layers, sizes, types, style. Each check runs once, on everything."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("lorahub", "registry")
MAX_FILE = 300
MAX_FUNCTION = 60

pytestmark = pytest.mark.xdist_group("architecture")


def run(tool: str, *arguments: str) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name(tool), *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"\n{tool} {' '.join(arguments)}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize(
    "command", ["lint-imports", "ruff check .", "ruff format --check .", "mypy"], ids=lambda command: command
)
def test_tool(command: str) -> None:
    run(*command.split())


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """(name, lines) of every function, decorators and docstring left out."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno:
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            yield node.name, node.end_lineno - body[0].lineno + 1


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    long = [f"{path.relative_to(ROOT)} has {lines} lines" for path, lines in lengths.items() if lines > MAX_FILE]
    assert not long, f"a file has at most {MAX_FILE} lines, split by noun: {'; '.join(long)}"
    assert len(lengths) > 50, "the sources were not found"


def test_functions_are_short() -> None:
    long = [
        f"{name} in {path.relative_to(ROOT)} has {lines}"
        for path in sources()
        for name, lines in functions(path)
        if lines > MAX_FUNCTION
    ]
    assert not long, f"a function has at most {MAX_FUNCTION} lines: {'; '.join(long)}"


def test_modules_say_what_they_are_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in sources()
        if path.read_text(encoding="utf-8").strip()
        and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent, f"a module begins with what it is for: {', '.join(silent)}"


def test_every_command_file_is_a_command() -> None:
    from lorahub.cli import COMMANDS

    for name, module in COMMANDS.items():
        text = (ROOT / "lorahub" / "cli" / f"{module}.py").read_text(encoding="utf-8")
        assert text.startswith(f'"""lorahub {name}'), f"lorahub/cli/{module}.py says first which command it is"
        assert module.strip("_").replace("_", "-") == name
