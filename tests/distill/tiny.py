"""Whole tiny pipelines of random weights (SD and SDXL), and a source of batches for them: seconds on one core."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from lorahub.distill.conditioning import Batch, Conditioning, default_size

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the libraries' own deprecations are not ours to fail on
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WIDTH = 16
WORDS = ("red", "blue", "star", "ring", "on")
TARGETS = ("to_q", "conv1")
"""A few of the modules, a linear and a convolution, so that runs are quick."""


def tokenizer(folder: Path) -> Any:
    """A CLIPTokenizer whose words are single tokens."""
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *(f"{word}</w>" for word in WORDS)]
    letters = sorted({letter for word in WORDS for letter in word})
    vocabulary += [*letters, *(f"{letter}</w>" for letter in letters)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def text_encoder(kind: type[Any], seed: int) -> Any:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=64,
        max_position_embeddings=16,
        projection_dim=WIDTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return kind(config).eval()


def vae() -> Any:
    torch.manual_seed(3)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
    ).eval()


def scheduler(prediction_type: str) -> Any:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def unet(**more: Any) -> Any:
    torch.manual_seed(0)
    config = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
        "sample_size": 8,
    }
    return UNet2DConditionModel(**{**config, **more}).eval()


def sd(folder: Path, *, prediction_type: str = "epsilon", **more: Any) -> Any:
    """A StableDiffusionPipeline with everything it needs to draw."""
    return StableDiffusionPipeline(
        vae=vae(),
        unet=unet(**more),
        text_encoder=text_encoder(CLIPTextModel, 1),
        tokenizer=tokenizer(folder),
        scheduler=scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(folder: Path) -> Any:
    """A StableDiffusionXLPipeline: two text encoders, pooled embeddings, time ids."""
    words = tokenizer(folder)
    return StableDiffusionXLPipeline(
        vae=vae(),
        unet=unet(
            cross_attention_dim=2 * WIDTH,
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        ),
        text_encoder=text_encoder(CLIPTextModel, 1),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection, 2),
        tokenizer=words,
        tokenizer_2=words,
        scheduler=scheduler("epsilon"),
    )


class Batches:
    """Batches of random latents under random conditions, fitting a pipeline: a function of the number alone.

    poison: the number of a batch that holds a NaN. same: every batch is the first. scale: of the prompt embeddings.
    """

    def __init__(
        self, pipeline: Any, size: int = 2, *, poison: int | None = None, same: bool = False, scale: float = 1.0
    ) -> None:
        self.pipeline, self.size, self.poison, self.same, self.scale = pipeline, size, poison, same, scale

    def at(self, step: int) -> Batch:
        random = torch.Generator().manual_seed(1000 + (0 if self.same else step))
        config = self.pipeline.unet.config
        latents = torch.randn(self.size, config.in_channels, 8, 8, generator=random)
        if step == self.poison:
            latents[0, 0, 0, 0] = torch.nan
        embeds = self.scale * torch.randn(self.size, 16, config.cross_attention_dim, generator=random)
        if config.addition_embed_type is None:
            return Batch(latents, Conditioning(embeds))
        pooled = self.scale * torch.randn(self.size, WIDTH, generator=random)
        sizes = torch.tensor([default_size(self.pipeline)] * self.size).float()
        return Batch(latents, Conditioning(embeds, pooled, sizes))
