"""The accelerate Accelerator of a run: devices, processes, mixed precision and logs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorahub.distill.settings import Settings
from lorahub.errors import UsageError

if TYPE_CHECKING:
    from accelerate import Accelerator


@contextmanager
def accelerating(settings: Settings, folder: Path | None) -> Iterator[Accelerator]:
    """An Accelerator while the block runs; afterwards another run of this process may choose other settings.

    Raises UsageError for a launch that spreads one model over devices (FSDP, DeepSpeed, ...), for fp16 without a GPU, and
    for logs that have no place or no writer.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    _check_log(settings, folder)
    try:
        accelerator = Accelerator(
            mixed_precision=settings.precision,
            gradient_accumulation_steps=settings.accumulation,
            log_with=settings.log or None,
            project_dir=None if folder is None else str(folder),
        )
    except ValueError as error:
        raise UsageError(f"precision: {str(error).splitlines()[0]}") from None
    try:
        if accelerator.distributed_type in (
            DistributedType.FSDP,
            DistributedType.DEEPSPEED,
            DistributedType.MEGATRON_LM,
        ):
            raise UsageError(
                f"{accelerator.distributed_type.value} is not supported: launch with plain data parallelism"
            )
        if settings.precision == "fp16" and accelerator.device.type == "cpu":
            raise UsageError("precision: fp16 needs a GPU; use bf16 or no")
        if settings.log:
            accelerator.init_trackers("logs", config=_loggable(settings))
        yield accelerator
    finally:
        accelerator.end_training()
        AcceleratorState._reset_state()


def _check_log(settings: Settings, folder: Path | None) -> None:
    if settings.log and folder is None:
        raise UsageError("log: name an output, beside which the logs are written")
    if settings.log == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise UsageError("log: tensorboard is not installed: pip install tensorboard")


def _loggable(settings: Settings) -> dict[str, Any]:
    """TensorBoard's hyperparameters hold single values."""
    return {
        name: value if isinstance(value, (int, float, str, bool)) else " ".join(map(str, value))
        for name, value in asdict(settings).items()
    }
