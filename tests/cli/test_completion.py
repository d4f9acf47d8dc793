"""lorahub completion: the scripts, and the answers behind them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import SCRIPT, Run, script


def complete(*words: str) -> list[str]:
    """What bash is offered for the last word, as `type,value`."""
    env = {"_LORAHUB_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    done = script(env=env)
    assert done.stderr == b""
    return done.stdout.decode().splitlines()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script(run: Run, shell: str) -> None:
    result = run("completion", shell)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"_LORAHUB_COMPLETE={shell}_complete" in result.stdout


def test_bash_accepts_its_script_and_is_answered(run: Run, tmp_path: Path) -> None:
    (tmp_path / "lorahub.bash").write_text(run("completion", "bash").stdout)
    assert subprocess.run(["bash", "-n", tmp_path / "lorahub.bash"]).returncode == 0
    asked = f"""
        PATH={SCRIPT.parent}:$PATH
        source {tmp_path}/lorahub.bash
        complete -p lorahub >&2
        COMP_WORDS=(lorahub insp); COMP_CWORD=1
        _lorahub_completion lorahub
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, timeout=60)
    assert done.stdout == "inspect\n"
    assert "-F _lorahub_completion" in done.stderr


def test_options_values_and_files() -> None:
    assert "plain,--to" in complete("lorahub", "convert", "--t")
    assert complete("lorahub", "convert", "a", "--to", "") == ["plain,kohya", "plain,diffusers", "plain,peft"]
    assert complete("lorahub", "inspect", "sty") == ["file,sty"]
    assert "plain,sdxl" in complete("lorahub", "combine", "a", "--base", "sd")


def test_another_shell_is_refused(run: Run) -> None:
    assert run("completion", "tcsh").exit_code == 2
