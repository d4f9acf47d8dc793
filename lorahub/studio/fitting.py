"""The training loop of the studio's own models: seeded, watched, and continued where it was interrupted.

The rule: the batch of a step depends on the seed and the number of the step alone, so a continued run sees what an
uninterrupted one would have seen, and ends with the same weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorahub.errors import ConflictError, VerificationError

Loss = Callable[[torch.Generator], Tensor]
"""Randomness of one step -> the loss of its batch."""
Report = Callable[[int, int, float], None]
"""(steps done, steps in all, mean loss lately)."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train."""

    steps: int
    rate: float
    """Peak of a one-cycle learning rate."""
    ema: float | None = None
    """Decay of the averaged weights that are kept in the end; None keeps the last ones."""
    weight_decay: float = 1e-2
    every: int = 100
    """Steps between checkpoints."""


def fit(
    parts: Mapping[str, nn.Module], loss: Loss, schedule: Schedule, checkpoint: Path, *, seed: int, report: Report
) -> None:
    """Train the parts in place, from the checkpoint if there is one; it is left behind, with the last step in it.

    Raises VerificationError when the loss is not finite, ConflictError when the checkpoint is of other settings.
    """
    modules = nn.ModuleDict(dict(parts)).train()
    run = _Run(modules, schedule, seed)
    if checkpoint.exists():
        run.load(checkpoint)
    recent: Tensor | None = None
    while run.step < schedule.steps:
        value = loss(torch.Generator().manual_seed(seed * 1_000_003 + run.step))
        if not bool(value.isfinite()):
            raise VerificationError(
                f"the loss of step {run.step} is not finite; {checkpoint} holds the last good state"
            )
        run.update(value)
        recent = value.detach() if recent is None else 0.98 * recent + 0.02 * value.detach()
        if run.step % schedule.every == 0 or run.step == schedule.steps:
            run.save(checkpoint)
        report(run.step, schedule.steps, float(recent))
    run.finish()


class _Run:
    """Everything that changes from step to step."""

    def __init__(self, modules: nn.ModuleDict, schedule: Schedule, seed: int) -> None:
        self.step = 0
        self._modules, self._schedule = modules, schedule
        self._settings = {"steps": schedule.steps, "rate": schedule.rate, "ema": schedule.ema, "seed": seed}
        self._weights = [weight for weight in modules.parameters() if weight.requires_grad]
        self._average = [weight.detach().clone() for weight in self._weights] if schedule.ema is not None else []
        self._optimizer = torch.optim.AdamW(
            self._weights, schedule.rate, betas=(0.9, 0.99), weight_decay=schedule.weight_decay
        )
        self._rates = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, schedule.rate, total_steps=schedule.steps, pct_start=min(0.1, 200 / schedule.steps)
        )

    def update(self, value: Tensor) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimizer.step()
        self._rates.step()
        self.step += 1
        if self._average and self._schedule.ema is not None:
            decay = min(self._schedule.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self._average, [weight.detach() for weight in self._weights], 1 - decay)

    def finish(self) -> None:
        with torch.no_grad():
            for weight, average in zip(self._weights, self._average, strict=bool(self._average)):
                weight.copy_(average)
        self._modules.eval()

    def save(self, path: Path) -> None:
        state = {
            "settings": self._settings,
            "step": self.step,
            "modules": self._modules.state_dict(),
            "average": self._average,
            "optimizer": self._optimizer.state_dict(),
            "rates": self._rates.state_dict(),
        }
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def load(self, path: Path) -> None:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if state["settings"] != self._settings:
            raise ConflictError(
                f"{path} is of a run with {state['settings']}, this one has {self._settings}: remove it to start anew"
            )
        self.step = state["step"]
        self._modules.load_state_dict(state["modules"])
        self._average = state["average"]
        self._optimizer.load_state_dict(state["optimizer"])
        self._rates.load_state_dict(state["rates"])
