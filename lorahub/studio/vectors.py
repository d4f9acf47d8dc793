"""The studio's vectors: one for each style, and the acceleration vector, all made by the distiller's public interface.

The rule: the acceleration vector is distilled on plain pictures only, so whatever it does to a style, it never saw one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorahub.distill import Batch, Conditioning, Settings, distill, encode_prompts
from lorahub.distill.settings import TARGETS
from lorahub.distill.style import StyleSettings, train_style as tune
from lorahub.distill.trainer import Report
from lorahub.studio import models, styles, training, world

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

DISTILLING: dict[str, Any] = {
    "rank": 16,
    "batch_size": 32,
    "learning_rate": 5e-4,
    "warmup": 0.1,
    "decay": "cosine",
    "w_min": models.GUIDANCE - 2,  # w is the guidance scale less one
    "w_max": models.GUIDANCE,
    "solver_steps": 50,
    "loss": "huber",
    "huber_c": 1e-3,
    "target": "ema",
    "ema_decay": 0.95,
    "keep": "target",
}
"""How the acceleration vector is made: guidance around the usual, and a moving average as the target and as the result."""

STYLING: dict[str, Any] = {
    "rank": 8,
    "batch_size": 32,
    "learning_rate": 2e-3,
    "warmup": 0.1,
    "decay": "cosine",
    "targets": TARGETS,
}
"""How a style vector is made: ordinary fine-tuning of all the layers that the acceleration vector touches."""

Progress = Callable[[int, int, float], None]
"""(steps done, steps in all, loss)"""


def train_lcm(
    pipe: StableDiffusionPipeline, output: Path, *, steps: int, pictures: int, seed: int, progress: Progress
) -> None:
    """Distil the acceleration vector into the file `output`; an interrupted run goes on."""
    settings = Settings(**DISTILLING, **_common(output, steps, seed))
    source = Latents(pipe, pictures=pictures, batch=settings.batch_size, seed=seed)
    distill(pipe, source, settings, progress=_told(progress), resume=True)


def train_style(
    pipe: StableDiffusionPipeline, style: str, output: Path, *, steps: int, pictures: int, seed: int, progress: Progress
) -> None:
    """Fine-tune the vector of a style into the file `output`; an interrupted run goes on."""
    settings = StyleSettings(**STYLING, **_common(output, steps, seed))
    source = Latents(pipe, style=style, pictures=pictures, batch=settings.batch_size, seed=seed)
    tune(pipe, source, settings, progress=_told(progress), resume=True)


def _common(output: Path, steps: int, seed: int) -> dict[str, Any]:
    return {"output": str(output), "steps": steps, "seed": seed, "checkpoint_every": 100, "keep_checkpoints": 1}


def _told(progress: Progress) -> Callable[[Report], None]:
    return lambda report: progress(report.step, report.steps, report.loss)


class Latents:
    """An endless, seeded stream of batches for the distiller: encoded pictures of one style with their prompts."""

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        *,
        style: str = styles.PLAIN,
        palette: world.Palette = world.PALETTE,
        pictures: int = 6000,
        batch: int = 32,
        seed: int = 0,
    ) -> None:
        scenes = world.scenes(pictures, seed)
        prompts = scenes.prompts
        known = sorted(set(prompts))
        self._embeds = encode_prompts(pipe, known).prompt_embeds
        self._words = torch.tensor([known.index(prompt) for prompt in prompts])
        self._means, self._deviations = training.encoded(pipe.vae, scenes, style, palette)
        self._batch, self._seed = batch, seed

    def at(self, step: int) -> Batch:
        """Batch number `step`, a pure function of the seed and `step`."""
        random = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        chosen = torch.randint(len(self._words), (self._batch,), generator=random)
        means: Tensor = self._means[chosen]
        latents = means + self._deviations[chosen] * torch.randn(means.shape, generator=random)
        return Batch(latents, Conditioning(self._embeds[self._words[chosen]]))
