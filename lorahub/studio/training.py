"""What the parts of the tiny Stable Diffusion learn, and from which pictures.

The rule: the autoencoder and the scorer see every style and many colours; the base sees plain pictures only, so that
a style is something its adapter alone has to teach.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lorahub.studio import models, scoring, styles, world
from lorahub.studio.fitting import Report, Schedule, fit

DROPPED = 0.12
"""Share of the prompts that training replaces by the empty one, for classifier-free guidance."""
_SMOOTH, _EXACT = 3e-6, 1e-7
"""Weights of the Kullback-Leibler divergence from the prior, summed over a picture."""


def train_vae(schedule: Schedule, checkpoint: Path, *, seed: int, report: Report, batch: int = 16) -> Any:
    """An AutoencoderKL on pictures of all styles, a quarter of them in colours no prompt has a word for."""
    model = models.vae(seed)

    def loss(generator: torch.Generator, kl: float) -> Tensor:
        pictures, _ = mixed(batch, generator, free=0.25)
        posterior = model.encode(pictures).latent_dist
        drawn = model.decode(posterior.sample(generator)).sample
        divergence: Tensor = posterior.kl().mean()
        return F.l1_loss(drawn, pictures) + F.mse_loss(drawn, pictures) + kl * divergence

    fit({"vae": model}, partial(loss, kl=_SMOOTH), schedule, checkpoint, seed=seed, report=report)
    # A strong prior makes latents smooth, and leaves them noisy; a weak one then makes them exact.
    exact = replace(schedule, steps=max(1, schedule.steps * 2 // 7), rate=schedule.rate / 3)
    second = checkpoint.with_stem(f"{checkpoint.stem}-exact")
    fit({"vae": model}, partial(loss, kl=_EXACT), exact, second, seed=seed + 1, report=report)
    with torch.no_grad():  # the noise was for training only: from here on a picture has one encoding, give or take 1 %
        model.quant_conv.weight[models.LATENT_CHANNELS :] = 0
        model.quant_conv.bias[models.LATENT_CHANNELS :] = 2 * math.log(0.01)
        latents = model.encode(world.draw(world.scenes(512, seed))).latent_dist.mean
    model.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    _train_decoder(model, schedule, checkpoint.with_stem(f"{checkpoint.stem}-decoder"), seed, report, batch)
    return model


def _train_decoder(model: Any, schedule: Schedule, checkpoint: Path, seed: int, report: Report, batch: int) -> None:
    """The decoder alone, on encodings with noise such as a U-Net leaves in them."""

    def loss(generator: torch.Generator) -> Tensor:
        pictures, _ = mixed(batch, generator, free=0.25)
        with torch.no_grad():
            latents = model.encode(pictures).latent_dist.mean
        noise = 0.1 * torch.rand(batch, 1, 1, 1, generator=generator) * torch.randn(latents.shape, generator=generator)
        drawn = model.decode(latents + noise).sample
        return F.l1_loss(drawn, pictures) + F.mse_loss(drawn, pictures)

    parts = {"decoder": model.decoder, "post_quant_conv": model.post_quant_conv}
    alone = replace(schedule, steps=max(1, schedule.steps * 5 // 8), rate=schedule.rate / 2)
    fit(parts, loss, alone, checkpoint, seed=seed + 2, report=report)


def mixed(count: int, generator: torch.Generator, free: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Pictures of all styles, plain among them, and what they show; a share `free` has colours no word means.

    count x 3 x 32 x 32; attribute or "style" -> count indices.
    """
    names = scoring.STYLE_NAMES
    scenes = world.scenes(count, int(torch.randint(2**62, (1,), generator=generator)), turn=math.pi)
    inks, grounds = (torch.tensor(colours) for colours in (world.PALETTE.inks, world.PALETTE.grounds))
    inks, grounds = inks[scenes.colour], grounds[scenes.ground]
    odd = torch.rand(count, generator=generator)[:, None] < free
    inks = torch.where(odd, torch.rand(count, 3, generator=generator), inks)
    grounds = torch.where(odd, torch.rand(count, 3, generator=generator), grounds)
    style = torch.randint(len(names), (count,), generator=generator)
    pictures = torch.empty(count, 3, world.SIZE, world.SIZE)
    for index, name in enumerate(names):
        chosen = style == index
        pictures[chosen] = world.paint(scenes[chosen], name, inks[chosen], grounds[chosen])
    return pictures, {"shape": scenes.shape, "colour": scenes.colour, "ground": scenes.ground, "style": style}


def train_scorer(schedule: Schedule, checkpoint: Path, *, seed: int, report: Report, batch: int = 64) -> scoring.Scorer:
    """The network that scores, on pictures of all styles, some a little noisy as drawn ones are."""
    with models.seeded(seed):
        scorer = scoring.Scorer()

    def loss(generator: torch.Generator) -> Tensor:
        pictures, truth = mixed(batch, generator, free=0.0)
        noise = 0.1 * torch.rand(batch, 1, 1, 1, generator=generator)
        return scorer.loss(pictures + noise * torch.randn(pictures.shape, generator=generator), truth)

    fit({"scorer": scorer}, loss, schedule, checkpoint, seed=seed, report=report)
    return scorer


def train_base(
    vae: Any,
    schedule: Schedule,
    checkpoint: Path,
    *,
    seed: int,
    report: Report,
    batch: int = 32,
    pictures: int = 30_000,
) -> tuple[Any, Any]:
    """Text encoder and U-Net, together, by v-prediction on the latents of plain pictures."""
    text_encoder = models.text_encoder(seed)
    unet = models.unet(seed).to(memory_format=torch.channels_last)  # a seventh faster on a CPU
    noise = models.scheduler()
    scenes = world.scenes(pictures, seed)
    tokens = tokenized(scenes.prompts)
    empty = tokenized([""])
    means, deviations = encoded(vae, scenes)

    def loss(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(pictures, (batch,), generator=generator)
        latents = means[chosen] + deviations[chosen] * torch.randn(means[chosen].shape, generator=generator)
        dropped = torch.rand(batch, generator=generator) < DROPPED
        words = torch.where(dropped[:, None], empty, tokens[chosen])
        added = torch.randn(latents.shape, generator=generator)
        times = torch.randint(noise.config.num_train_timesteps, (batch,), generator=generator)
        noisy = noise.add_noise(latents, added, times)
        predicted = unet(noisy, times, text_encoder(words).last_hidden_state).sample
        return F.mse_loss(predicted, noise.get_velocity(latents, added, times))

    fit({"text_encoder": text_encoder, "unet": unet}, loss, schedule, checkpoint, seed=seed, report=report)
    return text_encoder, unet.to(memory_format=torch.contiguous_format)


def tokenized(prompts: list[str]) -> Tensor:
    """N x 8 token numbers, padded."""
    found = models.tokenizer()(prompts, padding="max_length", truncation=True, return_tensors="pt")
    ids: Tensor = found.input_ids
    return ids


@torch.no_grad()
def encoded(
    vae: Any, scenes: world.Scenes, style: str = styles.PLAIN, palette: world.Palette = world.PALETTE
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the scaled latents of the pictures, N x 8 x 8 x 8 each."""
    means, deviations = [], []
    for start in range(0, len(scenes), 256):
        found = vae.encode(world.draw(scenes[start : start + 256], style, palette)).latent_dist
        means.append(found.mean)
        deviations.append(found.std)
    scale = vae.config.scaling_factor
    return torch.cat(means) * scale, torch.cat(deviations) * scale
