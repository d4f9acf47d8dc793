"""The parts of the tiny Stable Diffusion, untrained, and their assembly into an ordinary StableDiffusionPipeline.

The rule: every class is diffusers' or transformers' own, so a saved folder loads without a line of lorahub.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lorahub.studio import world
from lorahub.studio.shapes import SHAPES

LATENT_SIDE, LATENT_CHANNELS, TEXT_WIDTH, TEXT_LENGTH = 8, 8, 64, 8
NOISE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""The noise schedule of Stable Diffusion 1.5, with v-prediction."""
GUIDANCE = 3.0
"""The guidance scale that the base is drawn with, and that the acceleration vector makes unnecessary."""


def vae(seed: int) -> Any:
    """AutoencoderKL, 3 x 32 x 32 to 8 x 8 x 8."""
    from diffusers import AutoencoderKL

    with seeded(seed):
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(24, 48, 64),
            layers_per_block=1,
            latent_channels=LATENT_CHANNELS,
            norm_num_groups=8,
            sample_size=world.SIZE,
            mid_block_add_attention=False,
        )


def text_encoder(seed: int) -> Any:
    """CLIPTextModel, width 64, two layers, eight positions."""
    from transformers import CLIPTextConfig, CLIPTextModel

    words = tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        projection_dim=TEXT_WIDTH,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    with seeded(seed):
        return CLIPTextModel(config)


def unet(seed: int) -> Any:
    """UNet2DConditionModel, 1.2 million parameters, attention at the lower of its two resolutions."""
    from diffusers import UNet2DConditionModel

    with seeded(seed):
        return UNet2DConditionModel(
            sample_size=LATENT_SIDE,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(48, 64),
            layers_per_block=1,
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=4,
            norm_num_groups=8,
        )


def tokenizer() -> Any:
    """A CLIPTokenizer to which every word of the grammar is one token."""
    from transformers import CLIPTokenizer

    words = [*world.COLOURS, *SHAPES, "on", *world.GROUNDS]
    vocabulary: dict[str, int] = {}
    merges: list[tuple[str, str]] = []

    def add(token: str) -> str:
        vocabulary.setdefault(token, len(vocabulary))
        return token

    for letter in "abcdefghijklmnopqrstuvwxyz":
        add(letter)
        add(f"{letter}</w>")
    for word in words:  # byte-pair merges that build the word letter by letter, from its end
        tail = f"{word[-1]}</w>"
        for letter in reversed(word[:-1]):
            if (letter, tail) not in merges:
                merges.append((letter, tail))
            tail = add(letter + tail)
    start, end = add("<|startoftext|>"), add("<|endoftext|>")
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        bos_token=start,
        eos_token=end,
        unk_token=end,
        pad_token=end,
        model_max_length=TEXT_LENGTH,
    )


def scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(**NOISE)


def assemble(vae: Any, text_encoder: Any, unet: Any) -> Any:
    """The StableDiffusionPipeline of these parts, in evaluation mode, without a safety checker."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer(),
        unet=unet.eval(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initial weights that depend on the seed alone; torch's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
