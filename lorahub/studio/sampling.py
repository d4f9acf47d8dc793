"""Drawing with the studio: many prompts at once, the same noise in every cell that is compared.

The rule: the noise of picture i depends on the seed and i alone, not on the batch, the sampler or the adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorahub.algebra.adapter import Adapter
from lorahub.errors import UsageError
from lorahub.pipeline import attach, detach

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

_BATCH = 64


@dataclass(frozen=True)
class Sampler:
    """A way to draw: scheduler, steps, guidance scale (1 is without guidance)."""

    scheduler: str
    steps: int
    guidance: float = 1.0

    @property
    def evaluations(self) -> int:
        """Of the U-Net for one picture; guidance takes two a step."""
        return self.steps * (2 if self.guidance > 1 else 1)

    def __str__(self) -> str:
        return f"{self.scheduler} {self.steps}" + (f" guidance {self.guidance:g}" if self.guidance != 1 else "")


def _schedulers() -> dict[str, Callable[[Any], Any]]:
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler, UniPCMultistepScheduler

    # Trailing timesteps begin at the last one, where the pure noise is that sampling begins with (arXiv 2305.08891).
    trailing = {"timestep_spacing": "trailing"}
    return {
        "ddim": lambda config: DDIMScheduler.from_config(config, **trailing),
        "dpm": lambda config: DPMSolverMultistepScheduler.from_config(config, **trailing),
        "unipc": lambda config: UniPCMultistepScheduler.from_config(config, **trailing),
        "lcm": lambda config: LCMScheduler.from_config(config),
    }


SCHEDULERS = ("ddim", "dpm", "unipc", "lcm")
"""DDIM, DPM-Solver++, UniPC and multistep latent consistency sampling."""


@torch.no_grad()
def sample(pipe: StableDiffusionPipeline, prompts: Sequence[str], sampler: Sampler, *, seed: int = 0) -> Tensor:
    """One picture for each prompt: N x 3 x 32 x 32, float32 in [-1, 1]. The pipeline keeps its scheduler.

    Raises UsageError for a scheduler that is none of SCHEDULERS.
    """
    known = _schedulers()
    if sampler.scheduler not in known:
        raise UsageError(f"no such scheduler: {sampler.scheduler!r}; expected one of {', '.join(known)}")
    before, drawn = pipe.scheduler, []
    pipe.scheduler = known[sampler.scheduler](before.config)
    try:
        for start in range(0, len(prompts), _BATCH):
            part = list(prompts[start : start + _BATCH])
            # One generator a picture: also the noise that the LCM sampler adds on the way is the picture's own.
            random = [torch.Generator().manual_seed(seed * 1_000_003 + start + place) for place in range(len(part))]
            drawn.append(
                pipe(
                    prompt=part,
                    num_inference_steps=sampler.steps,
                    guidance_scale=sampler.guidance,
                    generator=random,
                    output_type="pt",
                ).images
            )
    finally:
        pipe.scheduler = before
    return torch.cat(drawn).float() * 2 - 1


@contextmanager
def wearing(pipe: StableDiffusionPipeline, adapter: Adapter | None) -> Iterator[None]:
    """The pipeline with the adapter on while the block runs; None draws with the bare base."""
    if adapter is None:
        yield
        return
    attach(pipe, adapter, name="studio")
    try:
        yield
    finally:
        detach(pipe, "studio")
