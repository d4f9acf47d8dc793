"""Whole tiny pipelines of random weights (SD and SDXL), and a source of batches for them: seconds on one core."""

from __future__ import annotations

import warnings
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
_WORDS = ("red", "blue", "green", "star", "circle", "ring", "on", "teal", "a", "of", "style")
SIDE = 32
"""Pixels of a picture; latents are half as wide."""
TARGETS = ("to_q", "conv1")
"""A few of the modules, a linear and a convolution, so that runs are quick."""


def tokenizer() -> Any:
    """Its words are single tokens; anything else is spelled in letters."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in _WORDS:
        made = word[0]
        for place, letter in enumerate(word[1:], 2):
            last = f"{letter}</w>" if place == len(word) else letter
            merges.append((made, last))
            made += last
            tokens.append(made)
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=[*dict.fromkeys(merges)], model_max_length=8)


def text_encoder(kind: type[Any], seed: int) -> Any:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=len(tokenizer()),
        max_position_embeddings=8,
        projection_dim=WIDTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return kind(config).eval()


def vae(seed: int = 3) -> Any:
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=SIDE,
        scaling_factor=0.5,
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
        "sample_size": SIDE // 2,
    }
    return UNet2DConditionModel(**{**config, **more}).eval()


def sd(*, prediction_type: str = "epsilon", **more: Any) -> Any:
    """A StableDiffusionPipeline with everything it needs to draw."""
    return StableDiffusionPipeline(
        vae=vae(),
        unet=unet(**more),
        text_encoder=text_encoder(CLIPTextModel, 1),
        tokenizer=tokenizer(),
        scheduler=scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> Any:
    """A StableDiffusionXLPipeline: two text encoders, pooled embeddings, time ids."""
    words = tokenizer()
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
        embeds = self.scale * torch.randn(self.size, 8, config.cross_attention_dim, generator=random)
        if config.addition_embed_type is None:
            return Batch(latents, Conditioning(embeds))
        pooled = self.scale * torch.randn(self.size, WIDTH, generator=random)
        sizes = torch.tensor([default_size(self.pipeline)] * self.size).float()
        return Batch(latents, Conditioning(embeds, pooled, sizes))
