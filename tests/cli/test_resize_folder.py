"""lorahub resize of a folder. Ranks of style (2, 1) and lcm (2, 1, 0.5) to 1 leave out 1 of 5 and 1.25 of 5.25."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli import adapters
from tests.cli.conftest import SCRIPT, Run

STYLE_ERROR, LCM_ERROR = math.sqrt(1 / 5), math.sqrt(1.25 / 5.25)


@pytest.fixture
def library(folder: Path) -> Path:
    """loras/ with two files, a folder in it with a PEFT folder and a file whose name has dots."""
    deep = folder / "loras" / "anime"
    deep.mkdir(parents=True)
    for name in ("style", "lcm"):
        (folder / f"{name}.safetensors").rename(folder / "loras" / f"{name}.safetensors")
    adapters.peft_folder(deep)
    adapters.style(deep).rename(deep / "style v1.5.safetensors")
    (folder / "loras" / "preview.png").write_bytes(b"png")
    return folder


def outputs(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


ALL = [
    "anime/lcm-peft/adapter_config.json",
    "anime/lcm-peft/adapter_model.safetensors",
    "anime/style v1.5.safetensors",
    "lcm.safetensors",
    "style.safetensors",
]


def test_every_adapter_is_resized_in_its_place(library: Path, run: Run) -> None:
    result = run("resize", "loras", "-o", "small", "--rank", "1")
    assert result.exit_code == 0, result.output
    assert outputs(library / "small") == ALL
    rows = [line.split("\t") for line in result.stdout.splitlines()[:-2]]
    before = (library / "loras" / "lcm.safetensors").stat().st_size
    after = (library / "small" / "lcm.safetensors").stat().st_size
    assert ["lcm.safetensors", str(before), str(after), "3", "1", f"{LCM_ERROR:.3%}"] in rows
    assert [(row[0], row[3], row[5]) for row in rows] == [
        ("anime/lcm-peft", "3", f"{LCM_ERROR:.3%}"),
        ("anime/style v1.5.safetensors", "2", f"{STYLE_ERROR:.3%}"),
        ("lcm.safetensors", "3", f"{LCM_ERROR:.3%}"),
        ("style.safetensors", "2", f"{STYLE_ERROR:.3%}"),
    ]
    assert result.stdout.splitlines()[-2] == "no adapters: preview.png"
    assert result.stdout.splitlines()[-1].startswith("4 of 4 adapters resized: ")
    assert (
        adapters.diagonals(library / "small" / "style.safetensors") == [pytest.approx([2, 0, 0, 0, 0], abs=2e-3)] * 12
    )
    compared = json.loads(run("compare", "small/anime/lcm-peft", "small/lcm.safetensors", "--json").stdout)
    assert compared["distance"] < 1e-5


def test_a_size_limits_each_and_a_format_respells_all(library: Path, run: Run) -> None:
    result = run("resize", "loras", "-o", "small", "--max-size", "45KiB", "--format", "diffusers", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert [each["output"] for each in facts["resized"]] == [
        "anime/lcm-peft.safetensors", "anime/style v1.5.safetensors", "lcm.safetensors", "style.safetensors",
    ]  # fmt: skip
    for each in facts["resized"]:
        assert each["format"] == "diffusers"
        assert each["size"] == (library / "small" / each["output"]).stat().st_size <= 45 * 1024
        assert each["rule"] == "budget(46080)"
    assert (facts["failed"], facts["ignored"]) == ([], ["preview.png"])


def test_what_fails_is_listed_with_the_reason_and_the_rest_is_done(library: Path, run: Run) -> None:
    loras = library / "loras"
    (loras / "broken.safetensors").write_bytes(b"x" * 100)
    (loras / "old.pt").write_bytes(b"x")
    (loras / "gone.safetensors").symlink_to("nowhere")
    (loras / "linked").symlink_to(loras / "anime")
    (loras / "none").mkdir()
    adapters.write(loras / "none" / "none.safetensors", {})
    result = run("resize", "loras", "-o", "small", "--rank", "1", "--json")
    assert result.exit_code == 8
    facts = json.loads(result.stdout)
    reasons = dict(facts["failed"])
    assert reasons.keys() == {"broken.safetensors", "old.pt", "gone.safetensors", "linked", "none/none.safetensors"}
    assert "pass --allow-pickle" in reasons["old.pt"]
    assert reasons["gone.safetensors"] == "a link to nothing"
    assert reasons["linked"] == "a link to a folder, which is not followed"
    assert outputs(library / "small") == ALL
    assert not (library / "small" / "none").exists()
    text = run("resize", "loras", "-o", "again", "--rank", "1")
    assert text.exit_code == 8
    assert "not resized: linked: a link to a folder, which is not followed" in text.stdout.splitlines()
    assert text.stdout.splitlines()[-1].startswith("4 of 9 adapters resized: ")


def test_what_exists_is_kept_unless_forced(library: Path, run: Run, refused: Callable[..., str]) -> None:
    assert run("resize", "loras", "-o", "small", "--rank", "1").exit_code == 0
    message = refused(6, "resize", "loras", "-o", "small", "--rank", "2")
    assert message == "all 4 outputs in small exist already: overwrite them with --force"
    (library / "small" / "lcm.safetensors").unlink()
    some = run("resize", "loras", "-o", "small", "--rank", "2", "--json")
    assert some.exit_code == 8
    assert [each["rank_max"] for each in json.loads(some.stdout)["resized"]] == [2]
    assert {reason.partition(" exists already")[2] for _, reason in json.loads(some.stdout)["failed"]} == {
        ": overwrite it with --force"
    }
    forced = run("resize", "loras", "-o", "small", "--rank", "2", "--force", "--json")
    assert forced.exit_code == 0
    assert [each["rank_max"] for each in json.loads(forced.stdout)["resized"]] == [2, 2, 2, 2]


def test_results_inside_the_folder_are_not_resized_again(library: Path, run: Run) -> None:
    for rank in ("2", "1"):
        assert run("resize", "loras", "-o", "loras/small", "--rank", rank, "--force").exit_code == 0
    assert outputs(library / "loras" / "small") == ALL


def test_two_adapters_never_share_an_output(library: Path, run: Run) -> None:
    adapters.style(library / "loras" / "anime").rename(library / "loras" / "anime" / "lcm-peft.safetensors")
    result = run("resize", "loras", "-o", "small", "--rank", "1", "--format", "peft", "--json")
    assert result.exit_code == 8
    [[path, reason]] = json.loads(result.stdout)["failed"]
    assert (path, reason) == (
        "anime/lcm-peft.safetensors",
        "its output small/anime/lcm-peft is that of anime/lcm-peft too",
    )


def test_a_folder_that_is_an_adapter_stays_one(library: Path, run: Run) -> None:
    peft = library / "loras" / "anime" / "lcm-peft"
    assert run("resize", peft, "-o", "one", "--rank", "1").stdout.startswith("one: sd15, peft")
    (library / "alone").mkdir()
    adapters.style(library / "alone")
    assert run("resize", "alone", "-o", "two.safetensors", "--rank", "1").stdout.startswith("two.safetensors: sd15")
    assert run("resize", "alone", "-o", "three", "--rank", "1").exit_code == 0
    assert outputs(library / "three") == ["style.safetensors"]


def test_components_side_by_side_are_one_adapter(library: Path, run: Run) -> None:
    parts = library / "loras" / "both"
    for name in ("unet", "text_encoder"):
        adapters.peft_folder(parts.parent / "anime" / "..").rename(parts.parent / name)
    parts.mkdir()
    for name in ("unet", "text_encoder"):
        (parts.parent / name).rename(parts / name)
    facts = json.loads(run("resize", "loras", "-o", "small", "--rank", "1", "--json").stdout)
    assert [path for path, _ in facts["failed"]] == ["both"]  # as one; the two hold the same layers
    assert outputs(library / "small") == ALL


def test_misuse(library: Path, misused: Callable[..., str], refused: Callable[..., str]) -> None:
    assert "--name and --tag are for one" in misused("resize", "loras", "--name", "x", "--rank", "1")
    assert "say how small" in misused("resize", "loras", "-o", "small")
    (library / "empty").mkdir()
    assert "empty holds no adapter" in refused(4, "resize", "empty", "-o", "small", "--rank", "1")
    assert refused(4, "resize", "loras", "-o", "no/such", "--rank", "1") == "no such folder: no"
    (library / "file").touch()
    assert refused(6, "resize", "loras", "-o", "file", "--rank", "1").startswith("file is a file")


def test_a_killed_run_leaves_whole_files_and_is_finished_by_the_next(library: Path, run: Run) -> None:
    for number in range(30):
        adapters.style(library / "loras" / "anime").rename(library / "loras" / f"s{number:02}.safetensors")
    command = [SCRIPT, "resize", "loras", "-o", "small", "--rank", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
    while process.poll() is None and not (library / "small" / "s00.safetensors").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    names = [path for path in outputs(library / "small") if path.endswith(".safetensors") and "/" not in path]
    assert 0 < len(names) < 32
    for name in names:
        assert len(adapters.dense(library / "small" / name)) == 12
    assert run("resize", "loras", "-o", "small", "--rank", "1").exit_code == 8
    assert len([path for path in outputs(library / "small") if path.endswith(".safetensors")]) == 34
