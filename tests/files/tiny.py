"""Real diffusers pipelines that carry the layer names of SD 1.5 and SDXL, small enough to run in a test."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lorahub.bases.live import describe
from lorahub.bases.model import Base

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the libraries' own deprecations are not ours to fail on
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

WIDTH = 16


def encoder(kind: type[Any], depth: int = 2) -> Any:
    torch.manual_seed(depth)
    return kind(
        CLIPTextConfig(
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=depth,
            num_attention_heads=2,
            vocab_size=64,
            projection_dim=WIDTH,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    ).eval()


def sd15() -> Any:
    """StableDiffusionPipeline: a UNet with the blocks of SD 1.5 and a CLIP encoder, random weights."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16, 16, 16),
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        sample_size=8,
    ).eval()
    parts = {"vae": None, "tokenizer": None, "safety_checker": None, "feature_extractor": None}
    return StableDiffusionPipeline(
        unet=unet,
        text_encoder=encoder(CLIPTextModel),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        requires_safety_checker=False,
        **parts,
    )


def sdxl() -> Any:
    """StableDiffusionXLPipeline: a UNet with the blocks of SDXL (3 transformers for 10) and both CLIP encoders."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3),
        norm_num_groups=4,
        cross_attention_dim=2 * WIDTH,
        attention_head_dim=(2, 2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        sample_size=8,
    ).eval()
    return StableDiffusionXLPipeline(
        vae=None,
        unet=unet,
        text_encoder=encoder(CLIPTextModel),
        text_encoder_2=encoder(CLIPTextModelWithProjection, 3),
        tokenizer=None,
        tokenizer_2=None,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
    )


MAKERS: dict[str, Callable[[], Any]] = {"sd15": sd15, "sdxl": sdxl}


def models(pipe: Any) -> dict[str, nn.Module]:
    """component -> model, for the components that adapters touch."""
    names = [name for name in ("unet", "text_encoder", "text_encoder_2") if getattr(pipe, name, None) is not None]
    return {name: getattr(pipe, name) for name in names}


def base(family: str) -> Base:
    return describe(f"tiny-{family}", models(MAKERS[family]()), like=family)


def draw(pipe: Any) -> dict[str, Tensor]:
    """What every component answers to a fixed input: the outputs that an adapter changes."""
    random = torch.Generator().manual_seed(5)
    dtype, width = pipe.unet.dtype, pipe.unet.config.cross_attention_dim
    latents = torch.randn(1, 4, 16, 16, generator=random).to(dtype)
    context = torch.randn(1, 7, width, generator=random).to(dtype)
    conditions = None
    if pipe.unet.config.addition_embed_type:
        conditions = {"text_embeds": torch.randn(1, WIDTH, generator=random).to(dtype), "time_ids": torch.ones(1, 6)}
    tokens = torch.tensor([[0, 5, 9, 40, 1]])
    with torch.no_grad():
        result = {name: model(tokens).last_hidden_state for name, model in models(pipe).items() if name != "unet"}
        answer = pipe.unet(latents, 500, context, added_cond_kwargs=conditions, return_dict=False)[0]
    return result | {"unet": answer}


def assert_same_drawing(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 2e-5) -> None:
    """Equal up to `tolerance` of the size of each output."""
    assert one.keys() == other.keys()
    for name, answer in one.items():
        apart = float((answer - other[name]).abs().max() / answer.abs().max())
        assert apart < tolerance, f"{name}: {apart:.2g}"


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    """component -> largest change as a share of the output's size."""
    return {name: float((one[name] - other[name]).abs().max() / one[name].abs().max()) for name in one}
