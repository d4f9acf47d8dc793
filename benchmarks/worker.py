"""One merge or resize in a fresh process, as the command line does it: stage times and memory, as JSON on stdout.

`python -m benchmarks.worker OUT RANK WATCH FILE [FILE ...]`; RANK 0 concatenates exactly, WATCH 1 measures memory. A process
of its own, so that its memory is that of the job and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import lorahub as lh
from benchmarks.measure import AnonymousMemory, Stages, one_thread


def main(out: str, rank: str, watch: str, *files: str) -> None:
    one_thread()
    lh.load, lh.truncate, lh.save  # noqa: B018  imported when first named, which is no part of the job
    stage = Stages()
    with AnonymousMemory() if int(watch) else contextlib.nullcontext() as memory:
        with stage("load"):
            adapters = [lh.load(file) for file in files]
        with stage("add"):
            total = 0.8 * adapters[0]
            for other in adapters[1:]:
                total = total + other
        if int(rank):
            with stage("truncate"):
                total = lh.truncate(total, lh.fixed(int(rank)), dtype=torch.float16)
        with stage("save"):
            saved = lh.save(total, out, dtype="fp16", force=True)
    print(
        json.dumps(
            {
                "stages": stage.times,
                "total": stage.total,
                "wall": stage.wall,
                "output": saved.size,
                "anonymous": memory.peak - memory.start if memory else 0,
            }
        )
    )


def run(out: Path, rank: int, *files: Path, repeat: int = 3) -> dict[str, Any]:
    """The fastest of `repeat` runs, each in its own process."""
    return min((_once(out, rank, False, files) for _ in range(repeat)), key=lambda result: result["total"])


def memory(out: Path, rank: int, *files: Path) -> tuple[int, int]:
    """(peak of memory that is no mapped file, size of the output), bytes; watching takes time, so nothing is timed."""
    result = _once(out, rank, True, files)
    return result["anonymous"], result["output"]


def _once(out: Path, rank: int, watch: bool, files: Sequence[Path]) -> dict[str, Any]:
    compiled = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}  # as installed
    command = [sys.executable, "-m", "benchmarks.worker", *map(str, (out, rank, int(watch), *files))]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True, env=compiled).stdout)
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
