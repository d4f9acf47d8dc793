"""A run that was killed and taken up again makes the same bits as one that was not."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lorahub.distill import distill
from lorahub.distill.resuming import checkpoints
from lorahub.errors import ConflictError, FileFormatError, UsageError
from tests.distill.killed_worker import settings
from tests.distill.tiny import Batches, sd

ROOT = Path(__file__).parents[2]


def train(folder: Path, name: str, *, resume: bool = False, **more: object) -> Any:
    pipeline = sd()
    return distill(pipeline, Batches(pipeline), settings(folder / f"{name}.safetensors", **more), resume=resume)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def test_a_killed_run_resumes_to_identical_weights(tmp_path: Path) -> None:
    worker = [sys.executable, "-m", "tests.distill.killed_worker", str(tmp_path), "5"]
    died = subprocess.run(worker, cwd=ROOT, capture_output=True, timeout=300)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert not (tmp_path / "killed.safetensors").exists()
    assert [path.name for path in checkpoints(tmp_path / "killed-run")] == [
        "checkpoint-000002.pt",
        "checkpoint-000004.pt",
    ]
    resumed = train(tmp_path, "killed", resume=True)
    whole = train(tmp_path, "whole")
    assert resumed.losses == whole.losses[4:]
    one, other = tensors(tmp_path / "killed.safetensors"), tensors(tmp_path / "whole.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    last = [torch.load(checkpoints(tmp_path / f"{name}-run")[-1], weights_only=True) for name in ("killed", "whole")]
    for part in ("student", "target"):
        assert all(torch.equal(value, last[1][part][name]) for name, value in last[0][part].items())
    assert any(not torch.equal(value, last[0]["target"][name]) for name, value in last[0]["student"].items())


def test_resuming_without_a_checkpoint_begins(tmp_path: Path) -> None:
    assert len(train(tmp_path, "a", resume=True, steps=1).losses) == 1


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    short = {"steps": 2, "decay": "constant"}
    train(tmp_path, "a", **short)
    longer = train(tmp_path, "a", resume=True, force=True, **{**short, "steps": 3})
    assert longer.losses == train(tmp_path, "b", **{**short, "steps": 3}).losses[2:]


def test_a_whole_model_resumes(tmp_path: Path) -> None:
    full = {"mode": "full", "steps": 2, "checkpoint_every": 1}
    whole = train(tmp_path, "whole", **full)
    checkpoints(tmp_path / "whole-run")[-1].unlink()
    again = train(tmp_path, "whole", resume=True, force=True, **full)
    assert again.losses == whole.losses[1:]
    for name, value in whole.unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[name], value)


def test_earlier_checkpoints_are_not_lost_by_accident(tmp_path: Path) -> None:
    train(tmp_path, "a", steps=1)
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(ConflictError, match="a-run has checkpoints of an earlier run"):
        train(tmp_path, "a", steps=1)
    assert len(checkpoints(tmp_path / "a-run")) == 1
    train(tmp_path, "a", steps=2, force=True)
    assert [path.name for path in checkpoints(tmp_path / "a-run")] == ["checkpoint-000002.pt"]


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    train(tmp_path, "a", steps=4, checkpoint_every=1, keep_checkpoints=3)
    assert [path.stem[-1] for path in checkpoints(tmp_path / "a-run")] == ["2", "3", "4"]


def test_what_cannot_be_resumed_is_refused(tmp_path: Path) -> None:
    train(tmp_path, "a", steps=1)
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(UsageError, match=r"rank: checkpoint-000001\.pt was made with 2, not 3: cannot resume"):
        train(tmp_path, "a", steps=1, rank=3, resume=True)
    with pytest.raises(UsageError, match=r"steps: .* not 9"):
        train(tmp_path, "a", steps=9, resume=True)
    (path,) = checkpoints(tmp_path / "a-run")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FileFormatError, match=r"checkpoint-000001\.pt is no checkpoint"):
        train(tmp_path, "a", steps=1, resume=True)
