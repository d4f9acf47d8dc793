"""Sample grids while training: prompts down, numbers of steps across, the same seed in every cell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorahub.distill.settings import Settings
from lorahub.files.store import replacing

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image


def sampler_for(settings: Settings, scheduler: Any) -> Any:
    """The scheduler that the result is sampled with: LCM's on the solver's grid, TCD's, or DDIM for a guided model."""
    from diffusers import DDIMScheduler, LCMScheduler, TCDScheduler

    grid = {"original_inference_steps": settings.solver_steps}
    if settings.mode == "guided":
        return DDIMScheduler.from_config(scheduler.config)
    if settings.mode == "tcd":
        return TCDScheduler.from_config(scheduler.config, **grid)
    return LCMScheduler.from_config(scheduler.config, **grid, timestep_scaling=settings.timestep_scaling)


@torch.no_grad()
def draw(pipeline: DiffusionPipeline, unet: Any, settings: Settings) -> Image:
    """The grid that `unet` draws in this pipeline; the pipeline is left as it was."""
    from PIL import Image

    before = {"unet": pipeline.unet, "scheduler": pipeline.scheduler}
    bar = getattr(pipeline, "_progress_bar_config", None)
    pipeline.register_modules(unet=unet, scheduler=sampler_for(settings, pipeline.scheduler))
    pipeline.set_progress_bar_config(disable=True)
    try:
        rows = [
            [_picture(pipeline, prompt, steps, settings.seed) for steps in settings.sample_steps]
            for prompt in settings.sample_prompts
        ]
    finally:
        pipeline.register_modules(**before)
        pipeline._progress_bar_config = bar if bar is not None else {}
    width, height = rows[0][0].size
    grid = Image.new("RGB", (width * len(rows[0]), height * len(rows)))
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            grid.paste(picture, (x * width, y * height))
    return grid


def _picture(pipeline: Any, prompt: str, steps: int, seed: int) -> Image:
    random = torch.Generator().manual_seed(seed)
    picture: Image = pipeline(prompt, num_inference_steps=steps, guidance_scale=1.0, generator=random).images[0]
    return picture


def write(grid: Image, path: Path) -> None:
    """Write the grid as a PNG that is whole or not there."""
    path.parent.mkdir(exist_ok=True)
    with replacing(path, force=True) as temporary:
        grid.save(temporary, format="PNG")
