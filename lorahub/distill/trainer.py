"""The loop: batches in, steps of algorithm 1, a vector out. Everything about devices and processes is accelerate's.

The rule: step i depends on the state after step i-1 and on (seed, i), and on nothing else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorahub.algebra.adapter import Adapter
from lorahub.distill import resuming, sampling
from lorahub.distill.algorithm import Distillation
from lorahub.distill.conditioning import Batch, Source, has_pooled, unconditional
from lorahub.distill.devices import accelerating
from lorahub.distill.models import Networks
from lorahub.distill.optimising import learning_rate, optimizer_for
from lorahub.distill.saving import Probe, base_of, difference, probe, save_checked, trained_adapter
from lorahub.distill.settings import Settings
from lorahub.distill.solver import Schedule
from lorahub.errors import ConflictError, UsageError, VerificationError
from lorahub.files.saving import Saved
from lorahub.pipeline import attach, detach
from lorahub.quiet import quiet

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class Report:
    """Where a run is: `step` of `steps` done, the mean loss of that step, seconds so far and still to go."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    seconds: float
    remaining: float


Progress = Callable[[Report], None]


@dataclass(frozen=True)
class Distilled:
    """What a run made.

    adapter: the vector; None in the mode guided, whose result is a whole model. unet: the trained model where a whole one
    was trained (written to OUTPUT-run/unet). saved: the file, where the settings name an output and this is the main
    process. losses: the mean loss of every step that was made (a resumed run has those since the checkpoint).
    """

    adapter: Adapter | None
    unet: Any | None
    saved: Saved | None
    losses: tuple[float, ...]
    settings: Settings


def distill(
    pipeline: DiffusionPipeline,
    source: Source,
    settings: Settings,
    *,
    progress: Progress | None = None,
    resume: bool = False,
) -> Distilled:
    """Distil a pipeline's U-Net as the settings say, on the batches `source.at(0)`, `source.at(1)`, ...

    pipeline: any with a U-Net and a scheduler of discrete timesteps (SD 1.x, 2.x, SDXL, SSD-1B); its weights are left as
    they are, on the device that was trained on. source: scaled latents with their conditions; it decides the batch size.
    resume: go on from the newest checkpoint in `settings.run_folder`, where there is one.
    Raises VerificationError when the loss or a gradient is not finite (the last good checkpoint stays) and when the saved
    file is not what was trained; ConflictError when the output exists; UsageError for what does not fit together.
    """
    if settings.output and Path(settings.output).exists() and not settings.force:
        raise ConflictError(f"{settings.output} exists already: choose another output, or set force = true")
    base = base_of(pipeline.unet)
    with accelerating(settings, settings.run_folder) as accelerator:
        with Networks(pipeline, settings) as networks:
            run = _Run(pipeline, source, settings, networks, accelerator)
            run.begin(resume)
            while run.step < settings.steps:
                run.advance()
                run.record(progress)
            unet = networks.settle(settings.keep)
            adapter = _vector(pipeline, unet, base, settings)
            expected = probe(unet, run.latest.latents, run.latest.conditioning)
        saved = None
        if accelerator.is_main_process:
            saved = _save(pipeline, unet, adapter, expected, settings)
        accelerator.wait_for_everyone()
    return Distilled(adapter, unet if settings.whole else None, saved, tuple(run.losses), settings)


def _vector(pipeline: DiffusionPipeline, unet: Any, base: str | None, settings: Settings) -> Adapter | None:
    """The trained LoRA, or the difference that a whole model makes; a model told w is no vector over the base."""
    if not settings.whole:
        return trained_adapter(pipeline, base, settings)
    if settings.mode == "guided":
        return None
    return difference(unet, pipeline.unet, base, settings)


def _save(
    pipeline: DiffusionPipeline, unet: Any, adapter: Adapter | None, expected: Probe, settings: Settings
) -> Saved | None:
    """Write what was trained, where the settings name an output; the pipeline is without the adapter."""
    folder = settings.run_folder
    if folder is None:
        return None
    if settings.whole:
        with quiet():
            unet.save_pretrained(folder / "unet")
    if adapter is None or not adapter.layers:
        return None
    if settings.whole:  # the vector is of limited rank, so the file has to answer as the vector does, not as the model
        attach(pipeline, adapter)
        expected = probe(pipeline.unet, expected.x, expected.c)
        detach(pipeline)
    return save_checked(pipeline, adapter, expected, settings)


class _Run:
    """The state of a run between two steps, and how to make one."""

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        source: Source,
        settings: Settings,
        networks: Networks,
        accelerator: Accelerator,
    ) -> None:
        self.pipeline, self.source, self.settings = pipeline, source, settings
        self.networks, self.accelerator = networks, accelerator
        self.folder = settings.run_folder
        self.step = 0
        self.losses: list[float] = []
        self.checkpoint: Path | None = None
        networks.to(accelerator.device)
        optimizer = optimizer_for(settings, networks.theta.values())
        self.student, self.optimizer = accelerator.prepare(networks.student, optimizer)
        schedule = Schedule.of(pipeline.scheduler)
        if settings.solver_steps > len(schedule.alphas):
            raise UsageError(f"solver_steps: the base has only {len(schedule.alphas)} timesteps")
        self.distillation = Distillation(networks, self.student, schedule.to(accelerator.device), settings)
        self.latest = self._batch(0)
        self.nothing = unconditional(pipeline, self.latest.conditioning.map(lambda tensor: tensor[:1]), self._how())
        self.started = time.monotonic()

    def _how(self) -> str:
        """SDXL and its kin know no prompt as zeros, the older ones as the empty prompt."""
        if self.settings.unconditional != "auto":
            return self.settings.unconditional
        return "zeros" if has_pooled(self.pipeline) else "empty"

    def _batch(self, number: int) -> Batch:
        batch = self.source.at(number)
        device = self.accelerator.device
        return Batch(batch.latents.to(device, torch.float32), batch.conditioning.to(device))

    def begin(self, resume: bool) -> None:
        """Make the run's folder and take up the newest checkpoint, where that is asked for."""
        if self.folder is None:
            return
        if self.accelerator.is_main_process:
            resuming.prepare(self.folder, resume=resume, force=self.settings.force)
        self.accelerator.wait_for_everyone()
        present = resuming.checkpoints(self.folder)
        if not present:
            return
        self.checkpoint = present[-1]
        state = resuming.read(self.checkpoint, self.settings, self.accelerator.num_processes)
        self.networks.load(state["student"])
        if self.networks.theta_minus is not None:
            for name, value in self.networks.theta_minus.items():
                value.copy_(state["target"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]

    def advance(self) -> None:
        """One optimiser step over `accumulation` batches, and one of the moving average."""
        settings, accelerator = self.settings, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, self.step)
        total = torch.zeros((), device=accelerator.device)
        for part in range(settings.accumulation):
            number = (self.step * settings.accumulation + part) * accelerator.num_processes + accelerator.process_index
            self.latest = self._batch(number)
            z, c = self.latest.latents, self.latest.conditioning
            with accelerator.accumulate(self.student):
                with accelerator.autocast():
                    loss = self.distillation.loss(z, c, self.nothing.repeated(c), number)
                total += loss.detach() / settings.accumulation
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    self._check(total)
                    self._clip()
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.networks.update_target(settings.ema_decay)
        self.step += 1

    def _check(self, total: Tensor) -> None:
        """Keeps the mean loss of the step. Raises VerificationError, in every process, when it is not finite."""
        loss = float(self.accelerator.reduce(total, "mean"))
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}")
        self.losses.append(loss)

    def _clip(self) -> None:
        """Scale the gradient to the norm `clip`; a gradient that is not finite is only survivable with a loss scaler."""
        limit = self.settings.clip or math.inf
        norm = float(self.accelerator.clip_grad_norm_(list(self.networks.theta.values()), limit))
        if not math.isfinite(norm) and self.accelerator.scaler is None:
            raise self._diverged(f"the norm of the gradient is {norm}")

    def _diverged(self, what: str) -> VerificationError:
        kept = f"the last good checkpoint is {self.checkpoint}" if self.checkpoint else "there is no checkpoint yet"
        return VerificationError(
            f"{what} at step {self.step + 1}: lower learning_rate or w_max, or use precision = 'bf16' or 'no'; {kept}"
        )

    def record(self, progress: Progress | None) -> None:
        """After a step: logs, progress, and where they are due, a checkpoint and a grid of samples."""
        settings, step = self.settings, self.step
        rate, loss = learning_rate(settings, step - 1), self.losses[-1]
        if settings.log:
            self.accelerator.log({"loss": loss, "learning_rate": rate}, step=step)
        seconds = time.monotonic() - self.started
        if progress is not None and self.accelerator.is_main_process:
            remaining = seconds / len(self.losses) * (settings.steps - step)
            progress(Report(step, settings.steps, loss, rate, seconds, remaining))
        if self.folder is None or not self.accelerator.is_main_process:
            return
        if settings.checkpoint_every and (step % settings.checkpoint_every == 0 or step == settings.steps):
            self.checkpoint = resuming.write(self.folder, step, self._state(), settings, self.accelerator.num_processes)
        if settings.sample_every and step % settings.sample_every == 0:
            with self.networks.showing(settings.keep) as unet, self.accelerator.autocast():
                grid = sampling.draw(self.pipeline, unet, settings)
            sampling.write(grid, self.folder / "samples" / f"step-{step:06d}.png")

    def _state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "student": {name: value.detach().cpu() for name, value in self.networks.theta.items()},
            "target": {name: value.cpu() for name, value in (self.networks.theta_minus or {}).items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": {} if scaler is None else scaler.state_dict(),
        }
