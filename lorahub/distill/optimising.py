"""The optimiser and the learning rate, which is a pure function of the step, so that no scheduler needs to be restored."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lorahub.distill.settings import Settings
from lorahub.errors import UsageError


def learning_rate(settings: Settings, step: int) -> float:
    """The rate of step number `step` (from 0): a linear rise over the warm-up, then constant, linear or cosine decay."""
    rising = round(settings.warmup * settings.steps)
    if step < rising:
        return settings.learning_rate * (step + 1) / rising
    done = (step - rising) / max(settings.steps - rising, 1)
    share = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[settings.decay]
    return settings.learning_rate * share


def optimizer_for(settings: Settings, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW over the parameters, in eight bits when asked for. Raises UsageError when bitsandbytes is not installed."""
    options: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **options)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError("optimizer: adamw8bit needs bitsandbytes: pip install bitsandbytes, or use adamw")
    optimizer: torch.optim.Optimizer = importlib.import_module("bitsandbytes").optim.AdamW8bit(parameters, **options)
    return optimizer
