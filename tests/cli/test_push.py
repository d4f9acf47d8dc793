"""push, pull, status and sync from the shell: lines, JSON, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorahub.workspace.core import Workspace
from tests.cli import adapters
from tests.cli.conftest import SCRIPT, Run
from tests.hub import faults, server
from tests.hub.conftest import hub as hub
from tests.hub.server import Hub

WEIGHTS = "pytorch_lora_weights.safetensors"
Env = dict[str, str]


@pytest.fixture
def there(hub: Hub, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A Hub, and a registry with `style` and `lcm` in it."""
    monkeypatch.setenv("LORAHUB_HOME", str(tmp_path / "registry"))
    monkeypatch.setenv("HF_TOKEN", server.TOKEN)
    added = run("add", "--no-weights", adapters.style(tmp_path), adapters.lcm(tmp_path))
    assert added.exit_code == 0, added.output
    return hub


def answer(run: Run, *arguments: str, code: int = 0) -> Any:
    result = run(*arguments, "--json")
    assert (result.exit_code, result.stderr) == (code, ""), result.output
    return json.loads(result.stdout)


def test_push(there: Hub, run: Run) -> None:
    dry = run("push", "style", "--to", "user/style", "--dry-run").stdout.splitlines()
    assert dry[0] == f"would send {WEIGHTS}, lorahub.json, README.md of style:1 to user/style"
    assert "user/style" not in there.repos
    done = answer(run, "push", "style", "--to", "user/style", "--private", "--tag", "v1")
    assert done == {
        "schema": 1, "command": "push", "dry_run": False, "reference": "style:1", "repo": "user/style", "branch": "main",
        "outcome": "pushed", "commit": there.repos["user/style"].branches["main"], "created": True, "kept": [],
        "sent": [WEIGHTS, "lorahub.json", "README.md"], "tag": "v1", "pull_request": None,
        "notes": ["it states no licence: `lorahub edit style:1 --licence ...`"],
    }  # fmt: skip
    assert run("push", "style").stdout == "style:1: user/style has it already\n"
    assert run("edit", "style", "--licence", "mit").exit_code == 0
    head = run("push", "style").stdout
    assert head.startswith("pushed style:1 to user/style, commit ")
    assert head.endswith(": lorahub.json, README.md\n")


def test_pull(there: Hub, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("push", "style", "--to", "user/style")
    monkeypatch.setenv("LORAHUB_HOME", str(tmp_path / "second"))
    commit = there.repos["user/style"].branches["main"]
    size = (tmp_path / "style.safetensors").stat().st_size
    done = answer(run, "pull", "user/style", "--base", "sd15")
    evidence = done.pop("evidence")
    assert evidence[0].startswith("all 12 layers exist in sd15")
    assert done == {
        "schema": 1, "command": "pull", "dry_run": False, "reference": "style:1", "repo": "user/style", "branch": "main",
        "commit": commit, "path": WEIGHTS, "sha256": there.repos["user/style"].files()[WEIGHTS].sha256, "size": size,
        "base": "sd15", "outcome": "new", "downloaded": True, "rebuilt": False, "notes": [],
    }  # fmt: skip
    assert run("pull", "user/style").stdout == f"known: style:1 is user/style@{commit[:12]}:{WEIGHTS}\n"


def test_status_and_sync(there: Hub, run: Run) -> None:
    assert run("sync", "--all").stdout == "no adapter was ever pushed or pulled\n"
    run("push", "style", "--to", "user/style")
    assert run("status").stdout == "style:1\tsame\tuser/style@main\t-\t-\t-\n"
    run("edit", "style", "--licence", "mit")
    found = answer(run, "status", "style")["adapters"]
    assert [(each["name"], each["status"], each["here"], each["there"]) for each in found] == [
        ("style", "ahead", ["record"], [])
    ]
    assert run("sync", "style", "--dry-run").stdout == "style: would push to user/style\n"
    assert run("sync", "style").stdout.startswith(
        "style: pushed to user/style\n  pushed style:1 to user/style, commit "
    )
    assert run("sync", "--all").stdout == "style: the same as user/style\n"


def test_a_conflict_exits_with_6(there: Hub, run: Run) -> None:
    run("push", "style", "--to", "user/style")
    there.repos["user/style"].change({WEIGHTS: b"x"})
    with Workspace.open() as workspace:
        lcm = workspace.get("lcm")
        workspace.registry.add_version("style", workspace.get("lcm"), stored=lcm.stored)
    result = run("sync", "style")
    assert result.exit_code == 6
    assert result.stdout.startswith("style: conflict: changed here and in user/style: weights; sync with --ours")
    assert answer(run, "sync", "--all", code=6)["adapters"][0]["action"] == "conflict"
    refusal = run("push", "style")
    assert (refusal.exit_code, len(refusal.stderr.splitlines())) == (6, 1)


def test_search_on_the_hub(there: Hub, run: Run, misused: Callable[..., str]) -> None:
    run("push", "style", "--to", "user/style-lora")
    assert run("search", "--hub", "style", "--base", "sd15").stdout == "user/style-lora\tsd15\t0\t0\t-\tstyle\n"
    assert run("search", "--hub", "style", "-q").stdout == "user/style-lora\n"
    assert run("search", "--hub", "style", "--base", "sdxl").stdout == ""
    hit = answer(run, "search", "--hub", "style")["hub"][0]
    assert (hit["repo"], hit["base"], hit["downloads"]) == ("user/style-lora", "sd15", 0)
    assert "--rank cannot be asked of the Hub" in misused("search", "--hub", "style", "--rank", "8")


def test_misuse(there: Hub, run: Run, misused: Callable[..., str], refused: Callable[..., str]) -> None:
    assert "--ours and --theirs exclude each other" in misused("sync", "style", "--ours", "--theirs")
    assert "name the adapters to sync" in refused(2, "sync")
    assert "--to USER/REPO" in refused(2, "push", "style")
    assert "expected user/repo" in refused(2, "pull", "style")
    assert "was not on the Hub before" in refused(4, "status", "style")


@pytest.fixture
def environment(there: Hub, tmp_path: Path) -> Env:
    own = {"HF_ENDPOINT": there.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": server.TOKEN}
    off = ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET")
    return {**os.environ, **own, **dict.fromkeys(off, "1")}


def killed(arguments: list[str], environment: Env, reached: Callable[[], bool]) -> None:
    """Run the installed script, and kill it without warning when it has come that far."""
    process = subprocess.Popen([SCRIPT, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 180
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("moment", ["PUT /lfs/", "POST .*/commit/"])
def test_a_push_that_is_killed(there: Hub, run: Run, environment: Env, moment: str) -> None:
    there.fail(moment, faults.delayed(5))
    wanted = moment.split("/")[1].strip(".*") or "commit"
    killed(
        ["push", "style", "--to", "user/style"],
        environment,
        lambda: any(wanted in each.path and each.method in moment for each in there.requests),
    )
    time.sleep(0.5)
    done = answer(run, "push", "style", "--to", "user/style")
    assert done["outcome"] == ("unchanged" if "commit" in moment else "pushed")
    titles = [each.title for each in there.repos["user/style"].history("main")]
    assert titles == ["style:1 by lorahub", "initial commit"]
    assert run("status").stdout.split("\t")[1] == "same"
    assert run("verify", "--all").exit_code == 0


def test_a_pull_that_is_killed(
    there: Hub, run: Run, environment: Env, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("push", "style", "--to", "user/style")
    monkeypatch.setenv("LORAHUB_HOME", str(tmp_path / "second"))
    there.requests.clear()
    there.faults.append(faults.Fault(f"GET .*/{WEIGHTS}", lambda right: right))  # the header
    there.fail(f"GET .*/{WEIGHTS}", faults.delayed(5))
    killed(
        ["pull", "user/style"],
        {**environment, "LORAHUB_HOME": str(tmp_path / "second")},
        lambda: sum(each.path.endswith(WEIGHTS) and each.method == "GET" for each in there.requests) == 2,
    )
    assert run("list").stdout == ""
    assert answer(run, "pull", "user/style")["outcome"] == "new"
    assert run("verify", "--all").exit_code == 0


def test_nothing_secret_is_kept(there: Hub, run: Run, tmp_path: Path) -> None:
    run("push", "style", "--to", "user/style")
    kept = [path for path in (tmp_path / "registry").rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if server.TOKEN.encode() in path.read_bytes()]
