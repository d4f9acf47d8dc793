"""Whole pipelines (VAE, tokenizer, text encoders, U-Net) of random weights, small enough to encode and draw in a test."""

from __future__ import annotations

import warnings
from typing import Any

import torch

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

SIDE = 32
"""Pixels of a picture; latents are half as wide."""
_WIDTH = 16
_WORDS = ("red", "blue", "green", "star", "circle", "on", "teal", "a", "of", "style")


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


def vae(seed: int = 0) -> Any:
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


def _encoder(kind: type[Any], seed: int) -> Any:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        vocab_size=len(tokenizer()),
        projection_dim=_WIDTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return kind(config).eval()


def _unet(**settings: Any) -> Any:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=SIDE // 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        **settings,
    ).eval()


def sd(prediction_type: str = "epsilon") -> Any:
    """StableDiffusionPipeline with one text encoder."""
    unet = _unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=_WIDTH,
    )
    return StableDiffusionPipeline(
        vae=vae(),
        unet=unet,
        text_encoder=_encoder(CLIPTextModel, 1),
        tokenizer=tokenizer(),
        scheduler=_scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> Any:
    """StableDiffusionXLPipeline with two text encoders, pooled embeddings and time ids."""
    unet = _unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2 * _WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + _WIDTH,
    )
    return StableDiffusionXLPipeline(
        vae=vae(),
        unet=unet,
        text_encoder=_encoder(CLIPTextModel, 1),
        text_encoder_2=_encoder(CLIPTextModelWithProjection, 2),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        scheduler=_scheduler("epsilon"),
    )


def _scheduler(prediction_type: str) -> Any:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
