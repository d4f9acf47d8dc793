"""A process that distils a tiny pipeline and kills itself, without any warning to Python, at a step."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from lorahub.distill import Settings, distill
from lorahub.distill.trainer import Report
from tests.distill.tiny import TARGETS, Batches, sd


def settings(output: Path, **more: object) -> Settings:
    given = {"rank": 2, "targets": TARGETS, "steps": 7, "learning_rate": 1e-2, "decay": "cosine", "checkpoint_every": 2}
    return Settings(output=str(output), solver_steps=10, dtype="fp32", **{**given, **more})  # type: ignore[arg-type]


def main(folder: Path, step: int) -> None:
    def die(report: Report) -> None:
        if report.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    pipeline = sd()
    distill(pipeline, Batches(pipeline), settings(folder / "killed.safetensors"), progress=die)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
