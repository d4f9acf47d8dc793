"""lorahub show: everything recorded, what a stranger wrote without its escapes, and Python that runs when pasted."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from lorahub.workspace.core import Workspace
from registry import Facts, Location, Parent, Recipe, RunSettings, Validation
from tests.cli.catalogue import HOSTILE, filled as filled, put, sha256
from tests.cli.conftest import Run


def test_what_is_said_and_what_was_found(filled: Path, run: Run) -> None:
    assert run("edit", "style", "--base", "sdxl", "--licence", "cc0").exit_code == 0
    lines = run("show", "style").stdout.splitlines()
    assert lines[0] == "style:2: style, kohya, 8 B"
    assert lines[1] == "  base sdxl (detected sd15)"
    assert "  unet: 12 layers, rank 8 to 16" in lines
    assert "  licence: cc0" in lines
    assert "  said by hand: licence" in lines
    assert "  tags: warm" in lines
    assert "  notes: paper and scissors" in lines
    assert f"  sha256 {sha256(b'style 2!')}" in lines
    assert "  versions 1, 2" in lines
    assert "  @prod is version 1" in lines
    assert "    12 layers" not in lines
    assert "    12 layers" in run("show", "style", "--why").stdout.splitlines()


def test_the_same_version_by_all_its_names(filled: Path, run: Run) -> None:
    named = [
        run("show", name).stdout for name in ("style:1", "style@prod", "STYLE:1", f"sha256:{sha256(b'style 1')[:8]}")
    ]
    assert len(set(named)) == 1
    assert named[0].startswith("style:1: ")


def test_where_it_lies_came_from_and_what_checks_found(filled: Path, run: Run) -> None:
    with Workspace.open() as workspace:
        facts = Facts(file_sha256=sha256(b"sum"), size=3, format="kohya", source={"recipe": "sum"})
        workspace.registry.add_version(
            "sum",
            facts,
            location=Location(root="/loras", relpath="a/sum.safetensors", size=3, mtime_ns=0, inode=1, device=1),
            parents=[Parent(sha256=sha256(b"style 1"), weight=0.8), Parent(sha256="0" * 64, weight=-1)],
            recipe=Recipe(method="linear", expression="0.8*style - x", tool="lorahub 1"),
            norms={"a": 3.0, "b": 4.0},
        )
        workspace.registry.mark_missing("/loras", ["a/sum.safetensors"])
        workspace.registry.record_validations("sum", [Validation(check="nan", severity="error", message="3 NaN")])
    lines = run("show", "sum").stdout.splitlines()
    assert "  file not in the store" in lines
    assert any(line.startswith("  file at /loras/a/sum.safetensors (missing since 20") for line in lines)
    assert "  made by lorahub 1: 0.8*style - x (linear)" in lines
    assert "    0.8 * style:1" in lines
    assert "    -1 * sha256:000000000000" in lines
    assert "  error: nan: 3 NaN" in lines
    assert "  norm 5" in lines
    shown = json.loads(run("show", "sum", "--json").stdout)
    assert shown["path"] is None
    assert shown["norm"] == 5.0
    assert [parent["weight"] for parent in shown["parents"]] == [0.8, -1.0]
    assert run("show", "sum", "--metadata").exit_code == 4


def test_an_accelerator_comes_with_python_to_paste(filled: Path, run: Run) -> None:
    code = json.loads(run("show", "lcm", "--json").stdout)["snippet"]
    assert code == [
        "import lorahub",
        "from diffusers import LCMScheduler",
        "pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config, **{'timestep_spacing': 'trailing'})",
        "lorahub.attach(pipe, lorahub.load('lcm:1'), weight=1.0)",
        "image = pipe(prompt, num_inference_steps=4, guidance_scale=1.0).images[0]",
    ]
    ast.parse("\n".join(code))
    assert run("show", "lcm").stdout.endswith("".join(f"    {line}\n" for line in code))


@pytest.mark.parametrize("scheduler", ["X; import os", "os.system", "X\nimport os", "Ｘ"])
def test_pasting_what_a_stranger_wrote_runs_nothing_of_it(filled: Path, run: Run, scheduler: str) -> None:
    with Workspace.open() as workspace:
        run_settings = RunSettings(scheduler=scheduler, scheduler_args={"a'); import os #": 1}, steps=2)
        put(workspace, "trap", b"trap", run=run_settings)
    code = json.loads(run("show", "trap", "--json").stdout)["snippet"]
    assert code == [
        "import lorahub",
        "lorahub.attach(pipe, lorahub.load('trap:1'))",
        "image = pipe(prompt, num_inference_steps=2).images[0]",
    ]


def test_hostile_words_are_printed_without_their_escapes(filled: Path, run: Run) -> None:
    output = run("show", "evil").stdout
    assert "\x1b" not in output
    assert "\u202e" not in output
    assert r"  trigger words: \x1b[31m=1+1\t\n\u202e<b>" in output.splitlines()
    assert json.loads(run("show", "evil", "--json").stdout)["record"]["licence"] == HOSTILE


def test_the_metadata_of_the_file(filled: Path, run: Run, tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save

    with Workspace.open() as workspace:
        put(workspace, "real", save({"a.lora_up.weight": np.zeros((2, 1), "float16")}, {"ss_tag": "x\x1b[2J"}))
    assert r"  ss_tag: x\x1b[2J" in run("show", "real", "--metadata").stdout.splitlines()
    assert json.loads(run("show", "real", "--metadata", "--json").stdout)["metadata"] == {"ss_tag": "x\x1b[2J"}


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        ("nobody", 4),
        ("style:9", 4),
        ("style@nobody", 4),
        ("sha256:ffffff", 4),
        ("sha256:ff", 2),
        ("../etc", 2),
        ("", 2),
    ],
)
def test_what_is_not_there(filled: Path, run: Run, reference: str, code: int) -> None:
    result = run("show", reference)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1
