"""Checkpoints of a run: everything that the next step depends on, in one file that is whole or not there.

The rule: noise, timesteps and data are functions of (seed, step), so besides the weights, their averages, the optimiser
and the gradient scaler only the number of steps is state. Torch's own generators are kept for layers that use them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lorahub.distill.settings import SURROUNDINGS, Settings
from lorahub.errors import ConflictError, FileFormatError, UsageError
from lorahub.files.store import replacing

_NAME = re.compile(r"checkpoint-(\d+)\.pt")

_FREE = SURROUNDINGS | {"dtype", "keep", "gradient_checkpointing"}
"""Settings that may differ between a run and its continuation."""


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*.pt") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def prepare(folder: Path, *, resume: bool, force: bool) -> None:
    """Make the run's folder. Forced to begin anew, the checkpoints in it go.

    Raises ConflictError when there are some and the run is neither to be resumed nor forced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    present = [] if resume else checkpoints(folder)
    if present and not force:
        raise ConflictError(
            f"{folder} has checkpoints of an earlier run: go on with --resume, or start anew with force = true"
        )
    for path in present:
        path.unlink()


def write(folder: Path, step: int, state: Mapping[str, Any], settings: Settings, processes: int) -> Path:
    """Write the state after `step` steps, and delete all but the newest `keep_checkpoints`."""
    path = folder / f"checkpoint-{step:06d}.pt"
    content = {
        **state,
        "step": step,
        "processes": processes,
        "settings": asdict(settings),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    with replacing(path, force=True) as temporary, temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    for old in checkpoints(folder)[: -settings.keep_checkpoints]:
        old.unlink()
    return path


def read(path: Path, settings: Settings, processes: int) -> dict[str, Any]:
    """The state in a checkpoint, and torch's generators as they were.

    Raises UsageError when a setting that the weights depend on has changed, FileFormatError for a damaged file.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        before: dict[str, Any] = content["settings"]
    except Exception as error:  # torch.load fails in as many ways as a file can be damaged
        raise FileFormatError(
            f"{path} is no checkpoint: {str(error).splitlines()[0]}; delete it to use an older one"
        ) from None
    unscheduled = settings.decay == "constant" and settings.warmup == 0
    for key, value in asdict(settings).items():
        if key not in _FREE and before.get(key) != value and not (key == "steps" and unscheduled):
            raise UsageError(f"{key}: {path.name} was made with {before.get(key)!r}, not {value!r}: cannot resume")
    if content["processes"] != processes:
        raise UsageError(f"{path.name} was made by {content['processes']} processes, not {processes}: cannot resume")
    torch.set_rng_state(content["rng"])
    if content["cuda_rng"] and len(content["cuda_rng"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(content["cuda_rng"])
    return content
