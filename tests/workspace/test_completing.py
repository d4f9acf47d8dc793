"""Names complete: from what is there, without making or printing anything, and without importing anything large."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lorahub.workspace.completing import complete
from lorahub.workspace.core import Workspace
from registry import Facts

SCRIPT = Path(sys.executable).with_name("lorahub")
PROGRAM = """
import json, sys
sys.argv = ["lorahub"]
import lorahub.cli
try:
    lorahub.cli.main()
except SystemExit:
    pass
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.fixture
def filled(workspace: Workspace) -> Workspace:
    registry = workspace.registry
    for number, name in enumerate(["style", "style", "Straße", "lcm", "gone", "100_x", "100a"]):
        registry.add_version(name, Facts(file_sha256=f"{number:064x}", size=1, format="kohya"))
    registry.alias("style:1", "prod")
    registry.remove("gone")
    return workspace


def shell(kind: str, *words: str, **environment: str) -> list[str]:
    """What a shell gets for the last word."""
    current = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": words[-1] if kind == "fish" else str(len(words) - 1)}
    env = {**os.environ, **current, "_LORAHUB_COMPLETE": f"{kind}_complete", **environment}
    done = subprocess.run([SCRIPT], capture_output=True, text=True, env=env, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("word", "proposals"),
    [
        ("", ["100_x", "100a", "lcm", "Straße", "style"]),
        ("st", ["Straße", "style"]),
        ("STR", ["Straße"]),
        ("strasse", ["Straße"]),
        ("100_", ["100_x"]),
        ("style:", ["style:2", "style:1"]),
        ("style:1", ["style:1"]),
        ("style@", ["style@prod"]),
        ("style@x", []),
        ("gone", []),
        ("gone:", []),
        ("nobody:", []),
        ("' OR 1=1 --", []),
        ("\udcff", []),
    ],
)
def test_references(filled: Workspace, word: str, proposals: list[str]) -> None:
    assert complete(word) == proposals


def test_bash(filled: Workspace) -> None:
    assert shell("bash", "lorahub", "show", "sty") == ["file,sty", "plain,style"]
    assert shell("bash", "lorahub", "show", "./sty") == ["file,./sty"]
    # bash cuts words at : and @ and replaces only what follows.
    assert shell("bash", "lorahub", "show", "style", ":")[1:] == ["plain,2", "plain,1"]
    assert shell("bash", "lorahub", "show", "style", ":", "1")[1:] == ["plain,1"]
    assert shell("bash", "lorahub", "show", "style", "@", "p")[1:] == ["plain,prod"]
    assert shell("bash", "lorahub", "remove", "style", ":", "1", "l")[1:] == ["plain,lcm"]
    # With COMP_WORDBREAKS changed it does not.
    assert shell("bash", "lorahub", "show", "style:")[1:] == ["plain,style:2", "plain,style:1"]


def test_zsh_and_fish(filled: Workspace) -> None:
    lines = shell("zsh", "lorahub", "show", "style@")
    assert [lines[i : i + 3] for i in range(0, len(lines), 3)][1] == ["plain", "style@prod", "_"]
    assert "plain,style" in [line.replace("\t", "") for line in shell("fish", "lorahub", "show", "sty")]


def test_bash_itself(filled: Workspace, tmp_path: Path) -> None:
    (tmp_path / "script").write_bytes(subprocess.run([SCRIPT, "completion", "bash"], capture_output=True).stdout)
    asked = f"""
        compopt() {{ :; }}  # which works only while a person types
        PATH={SCRIPT.parent}:$PATH; source {tmp_path}/script
        COMP_WORDS=(lorahub show style :); COMP_CWORD=3; _lorahub_completion lorahub; echo "${{COMPREPLY[@]}}"
        COMPREPLY=(); COMP_WORDS=(lorahub tag sty); COMP_CWORD=2; _lorahub_completion lorahub; echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("2 1\nstyle\n", "")


def test_no_registry_is_made(tmp_path: Path) -> None:
    home = tmp_path / "none"
    assert shell("bash", "lorahub", "show", "s", LORAHUB_HOME=str(home)) == ["file,s"]
    assert not home.exists()


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"no database" * 500])
def test_a_damaged_registry_is_passed_over_in_silence(home: Path, content: bytes) -> None:
    home.mkdir()
    (home / "registry.db").write_bytes(content)
    assert shell("bash", "lorahub", "show", "s") == ["file,s"]
    assert [path.name for path in home.iterdir()] == ["registry.db"]
    assert (home / "registry.db").read_bytes() == content


def test_a_bad_configuration_is_passed_over_in_silence(filled: Workspace, tmp_path: Path) -> None:
    (tmp_path / "lorahub.toml").write_text("home = ")
    env = {**os.environ, "COMP_WORDS": "lorahub show s", "COMP_CWORD": "2", "_LORAHUB_COMPLETE": "bash_complete"}
    done = subprocess.run([SCRIPT], capture_output=True, env=env, cwd=tmp_path, timeout=60)
    assert (done.stdout, done.stderr) == (b"file,s\n", b"")


def test_while_another_process_writes(filled: Workspace) -> None:
    with filled.transaction():
        filled.registry.tag("lcm", "x")
        assert "plain,style" in shell("bash", "lorahub", "show", "sty")


def test_what_is_imported(filled: Workspace) -> None:
    env = {**os.environ, "COMP_WORDS": "lorahub show s", "COMP_CWORD": "2", "_LORAHUB_COMPLETE": "bash_complete"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env, timeout=60)
    *proposals, modules = done.stdout.splitlines()
    assert "plain,style" in proposals
    assert not {"sqlalchemy", "alembic", "torch", "numpy", "psycopg", "fsspec"} & set(json.loads(modules))
