"""kill -9 at random points: what was acknowledged is there, what is there is whole, and work goes on."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("registry_worker.py")
ROOT = Path(__file__).parents[2]
KILLS = 24


def start(place: Any, output: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with output.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, str(WORKER), str(place.home), place.database_url or "", *arguments],
            stdout=stream,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )


def kill_while_it_works(place: Any, output: Path, seed: int, delay: float) -> list[str]:
    """Kill `delay` seconds after the first acknowledged change; returns all acknowledged ones."""
    process = start(place, output, "churn", str(seed))
    try:
        deadline = time.monotonic() + 30
        while not output.stat().st_size and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(delay)
        assert process.poll() is None, "it ended by itself"
    finally:
        process.kill()
        process.wait()
    return output.read_text().splitlines()


def test_kill_at_random_points_loses_nothing(place: Any, tmp_path: Path) -> None:
    dice = random.Random(1)
    kills = KILLS if place.database_url is None else KILLS // 3
    acknowledged: dict[str, str] = {}
    for seed in range(kills):
        output = tmp_path / f"{seed}.txt"
        for line in kill_while_it_works(place, output, seed, dice.uniform(0, 0.12)):
            reference, sha256 = line.split(" ")
            acknowledged[reference] = sha256
        with place.open() as registry:
            assert registry.check() == ()
    assert len(acknowledged) > kills
    with place.open() as registry:
        for reference, sha256 in acknowledged.items():
            assert registry.get(reference).file_sha256 == sha256
            registry.blobs.verify(sha256)
        live = {record.file_sha256 for record in registry.find()}
        assert live >= set(acknowledged.values())
        found = {a.name for a in registry.search("a1")} | {a.name for a in registry.search("a2")}
        assert found == {"a1", "a2"}


def test_kill_while_the_registry_is_created(tmp_path: Path) -> None:
    from dataclasses import make_dataclass

    where = make_dataclass("Where", ["home", "database_url", "open"])
    created = 0
    for step in range(8):
        home = tmp_path / f"home{step}"
        process = start(where(home, None, None), tmp_path / "output", "open")
        deadline = time.monotonic() + 30
        while not home.exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02 * step)
        process.kill()
        process.wait()
        created += (home / "registry.db").exists()
        from registry import Registry

        with Registry.open(home) as registry:
            assert registry.check() == ()
        assert not list(home.glob("registry.db.new-*"))
    assert created < 8  # at least the earliest kill came before the database was there
