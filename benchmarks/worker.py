"""One merge or resize in a fresh process, as the command line does it: stage times and memory, as JSON on stdout.

`python -m benchmarks.worker OUT RANK FILE [FILE ...]`; RANK 0 concatenates exactly. A process of its own, so that its
memory is that of the job and nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import lorahub as lh
from benchmarks.measure import AnonymousMemory, Stages, one_thread, peak_resident


def main(out: str, rank: str, *files: str) -> None:
    one_thread()
    stage = Stages()
    with AnonymousMemory() as memory:
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
                "anonymous": memory.peak - memory.start,
                "resident": peak_resident(),
            }
        )
    )


def run(out: Path, rank: int, *files: Path, repeat: int = 3) -> dict[str, Any]:
    """The fastest of `repeat` runs, each in its own process; `totals` holds the times of all, `anonymous` the largest."""
    results = []
    compiled = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}  # as installed
    for _ in range(repeat):
        command = [sys.executable, "-m", "benchmarks.worker", str(out), str(rank), *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=compiled)
        results.append(json.loads(done.stdout))
    best: dict[str, Any] = min(results, key=lambda result: result["total"])
    largest = max(result["anonymous"] for result in results)
    return best | {"totals": sorted(result["total"] for result in results), "anonymous": largest}


if __name__ == "__main__":
    main(*sys.argv[1:])
