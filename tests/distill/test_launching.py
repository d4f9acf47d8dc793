"""Two processes train one vector on twice the data."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lorahub.distill import distill
from tests.distill.killed_worker import settings
from tests.distill.tiny import Batches, sd

ROOT = Path(__file__).parents[2]


def launch(*arguments: str) -> None:
    """Start two processes as `accelerate launch` does for GPUs; on CPUs it would leave that to MPI."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=550
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_make_the_vector_of_their_common_batches(tmp_path: Path) -> None:
    launch("--module", "tests.distill.launched_worker", str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert (first["saved"], second["saved"]) == (True, False), "the main process writes the file"
    assert first["losses"] == second["losses"], "the loss is that of all"
    for name, value in first["factors"].items():
        assert torch.equal(second["factors"][name], value)
    pipeline = sd()
    alone: Any = distill(
        pipeline, Batches(pipeline), settings(tmp_path / "alone.safetensors", steps=3, loss="l2", accumulation=2)
    )
    assert first["losses"] == pytest.approx(alone.losses, rel=1e-4)
    for name, layer in alone.adapter.layers.items():
        torch.testing.assert_close(first["factors"][name], layer.dense(), atol=1e-4, rtol=1e-2)
