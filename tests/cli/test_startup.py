"""What is imported, asserted on sys.modules: a clock would lie on a busy machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "numpy",
    "sqlalchemy",
    "alembic",
    "huggingface_hub",
    "diffusers",
    "peft",
    "transformers",
    "safetensors",
)

PROGRAM = """
import json, sys
import lorahub.cli
try:
    lorahub.cli.main(sys.argv[2:], prog_name="lorahub")
except SystemExit as end:
    code = end.code
with open(sys.argv[1], "w") as file:
    json.dump([code, sorted({name.partition(".")[0] for name in sys.modules})], file)
"""


def imported(tmp_path: Path, *arguments: str) -> tuple[int, set[str]]:
    """(exit code, top-level modules in memory afterwards) of a command in a fresh process."""
    report = tmp_path / "imported.json"
    subprocess.run([sys.executable, "-c", PROGRAM, report, *arguments], capture_output=True, timeout=60, check=True)
    code, names = json.loads(report.read_text())
    return code, set(names)


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (0, ["--help"]),
        (0, ["--version"]),
        (0, ["combine", "--help"]),
        (0, ["completion", "zsh"]),
        (2, ["nonsense"]),
        (2, ["inspect"]),
        (2, ["combine", "a +b", "-o", "x"]),
        (2, ["combine", "a", "-o", "x", "--rank", "0"]),
        (2, ["combine", "a", "-o", "x", "--rank", "4", "--energy", "0.5"]),
        (2, ["resize", "a", "-o", "x"]),
        (2, ["convert", "a", "-o", "x.bin", "--to", "kohya"]),
        (4, ["compare", "a", "b", "--base", "no-such-base"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_and_usage_errors_import_only_click(tmp_path: Path, code: int, arguments: list[str]) -> None:
    found, names = imported(tmp_path, *arguments)
    assert found == code
    assert names.isdisjoint(HEAVY)
    foreign = {name for name in names if name not in sys.stdlib_module_names and not name.startswith("_")}
    assert foreign - {"sitecustomize", "usercustomize"} == {"click", "lorahub"}


@pytest.mark.parametrize("arguments", [["bases"], ["formats"], ["inspect", "style.safetensors", "--hash"]])
def test_commands_that_read_headers_import_nothing_heavy(folder: Path, arguments: list[str]) -> None:
    code, names = imported(folder, *arguments)
    assert code == 0
    assert names.isdisjoint(HEAVY)


def test_a_mistyped_file_does_not_import_the_hub_client(tmp_path: Path) -> None:
    code, names = imported(tmp_path, "inspect", "styel.safetensors")
    assert code == 4
    assert names.isdisjoint(HEAVY)


def test_completion_answers_without_heavy_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_LORAHUB_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "lorahub combine --ba")
    monkeypatch.setenv("COMP_CWORD", "2")
    code, names = imported(tmp_path)
    assert code == 0
    assert names.isdisjoint(HEAVY)


def test_importing_lorahub_imports_nothing_heavy() -> None:
    listed = "import lorahub, sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True, timeout=60)
    names = set(done.stdout.split())
    assert names.isdisjoint(HEAVY)
    assert "lorahub" in names
    assert "click" not in names
