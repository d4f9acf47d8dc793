"""What ComfyUI takes from a file, by the names its loader looks up.

ComfyUI cannot be installed as a library, so this is a table of its `comfy/lora.py` (`model_lora_keys_unet`,
`model_lora_keys_clip`) and `comfy/weight_adapter/lora.py`: a module is loaded when its key, without the suffix, is among
the names it makes from the model. What is in no row is open, not lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from lorahub.formats.layout import Module
from lorahub.validate.based import family
from lorahub.validate.finding import Finding, passed, unsure, warned
from lorahub.validate.opening import File

UNETS = ("sd15", "sd2", "sdxl", "ssd-1b")
_KOHYA = re.compile(r"lora_unet_|lycoris_|diffusion_model\.|lora_transformer_")
_KOHYA_CLIP = re.compile(r"lora_te[12]?_text_model_encoder_layers_\d+_(mlp_fc[12]|self_attn_([kqv]|out)_proj)$")
_DOTTED_CLIP = re.compile(
    r"text_encoder(_2)?\.text_model\.encoder\.layers\.\d+\.(mlp\.fc[12]|self_attn\.([kqv]|out)_proj)$"
)
_ENCODER = re.compile(r"lora_te|text_encoder")
_FIRST = ("up", "hada_w1_a", "lokr_w1", "lokr_w1_a", "diff", "a1", "oft_blocks", "bias")
_SUFFIX = re.compile(
    r"\.(lora_(up|B|mid)(\.default)?(\.weight)?|lora\.up\.weight|lora_linear_layer\.up\.weight|diff(_b)?|w_norm|b_norm"
    r"|hada_w1_a|lokr_w1(_a)?|a1\.weight|oft_blocks)$|_lora\.up\.weight$"
)


def comfyui(file: File) -> Iterator[Finding]:
    """ComfyUI loads every layer of the file as it is, at the strength that is meant."""
    if file.layout is None or not file.layout.modules:
        return
    name = family(file.base.name) if file.base else None
    if name is None:
        yield unsure("what ComfyUI loads depends on the base, which is not known")
        return
    lost, open_ = [], []
    for module in file.layout.modules:
        known = _is_known(module, name)
        if known is None:
            open_.append(module)
        elif not known:
            lost.append(module)
    if lost:
        message = (
            f"ComfyUI does not know {len(lost)} of {len(file.layout.modules)} layers, such as {_stem(lost[0])}, and drops "
            "them: `lorahub convert --to kohya`"
        )
        yield warned(message, layer=lost[0].name)
    if open_:
        yield unsure(f"it is not known whether ComfyUI loads {len(open_)} layers of {name}, such as {_stem(open_[0])}")
    changed = [module for module in file.layout.modules if _loses_scale(module)]
    if changed:
        scale = changed[0].scale or 0.0
        times = f"{1 / scale:g} times as strong as" if scale else "not zero as"
        yield warned(
            f"ComfyUI reads no alpha from metadata or adapter_config.json: {len(changed)} layers become {times} meant: "
            "`lorahub convert --to kohya`",
            layer=changed[0].name,
        )
    if not lost and not open_ and not changed:
        yield passed(f"ComfyUI knows all {len(file.layout.modules)} layers by these names")


def _is_known(module: Module, base: str) -> bool | None:
    stem = _stem(module)
    if _ENCODER.match(stem):
        return bool(_KOHYA_CLIP.match(stem) or _DOTTED_CLIP.match(stem)) if base in UNETS else None
    if _KOHYA.match(stem):
        return True
    if base not in UNETS:
        return True if stem.startswith("transformer.") else None
    # diffusers' names are known as those of attention processors: `...attn1.processor.to_q`, not `...attn1.to_q`
    return not re.match(r"\w+:\d+", stem) and ".to_" not in re.sub(r"\.processor\.to_\w+$", "", stem) and _rooted(stem)


def _rooted(stem: str) -> bool:
    return re.match(r"(unet\.)?(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding)\b", stem) is not None


def _stem(module: Module) -> str:
    """The key of a module without the suffix that names the tensor."""
    key = next((module.parts[role] for role in _FIRST if role in module.parts), next(iter(module.parts.values())))
    return _SUFFIX.sub("", key)


def _loses_scale(module: Module) -> bool:
    """Whether its scale stands outside the tensors, and is not 1."""
    return "alpha" not in module.parts and module.scale is not None and abs(module.scale - 1) > 1e-6
