"""The key grammar: how the spellings of LoRA files name a tensor's component, module and role.

A key is `<prefix><module><suffix>`: the suffix names the tensor's role, the prefix the pipeline component. Everything
here is a table or a lookup in one; what a key means for the mathematics is decided in kinds.py and layout.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple


class Suffix(NamedTuple):
    """What the end of a key says: the tensor's role, and the naming style it belongs to ("" where all have it)."""

    role: str
    style: str


SUFFIXES: Mapping[str, Suffix] = MappingProxyType(
    {
        # kohya / sd-scripts; also the dotted spellings of ComfyUI, OMI, musubi
        "lora_down.weight": Suffix("down", "kohya"),
        "lora_up.weight": Suffix("up", "kohya"),
        "lora_mid.weight": Suffix("mid", "kohya"),
        # PEFT, with and without `.weight` (AdaLoRA and Mochi leave it out)
        "lora_A.weight": Suffix("down", "peft"),
        "lora_B.weight": Suffix("up", "peft"),
        "lora_A": Suffix("down", "peft"),
        "lora_B": Suffix("up", "peft"),
        "lora_B.bias": Suffix("lora_bias", "peft"),
        "lora_embedding_A": Suffix("embedding_a", "peft"),
        "lora_embedding_B": Suffix("embedding_b", "peft"),
        "lora_magnitude_vector": Suffix("dora_scale", "peft"),
        "lora_magnitude_vector.weight": Suffix("dora_scale", "peft"),
        "magnitude": Suffix("dora_scale", "peft"),
        # diffusers
        "lora.down.weight": Suffix("down", "diffusers"),
        "lora.up.weight": Suffix("up", "diffusers"),
        "lora_linear_layer.down.weight": Suffix("down", "diffusers"),
        "lora_linear_layer.up.weight": Suffix("up", "diffusers"),
        # processors (old diffusers, XLabs): `to_q_lora.down.weight`; only where the rest ends in `_lora`
        "down.weight": Suffix("down", "old"),
        "up.weight": Suffix("up", "old"),
        # in every style
        "alpha": Suffix("alpha", ""),
        "lora.alpha": Suffix("alpha", ""),
        "lora_linear_layer.alpha": Suffix("alpha", ""),
        "diff_b": Suffix("bias", ""),
        "set_weight": Suffix("set_weight", "kohya"),
        "reshape_weight": Suffix("reshape_weight", ""),
        # LyCORIS
        "dora_scale": Suffix("dora_scale", ""),
        "diff": Suffix("diff", "kohya"),
        "w_norm": Suffix("diff", "kohya"),
        "b_norm": Suffix("bias", "kohya"),
        "bias_indices": Suffix("bias_indices", ""),
        "bias_values": Suffix("bias_values", ""),
        "bias_size": Suffix("bias_size", ""),
        "rescale": Suffix("rescale", "kohya"),
        "a1.weight": Suffix("a1", "kohya"),
        "a2.weight": Suffix("a2", "kohya"),
        "b1.weight": Suffix("b1", "kohya"),
        "b2.weight": Suffix("b2", "kohya"),
        "bm.weight": Suffix("bm", "kohya"),
        "oft_R": Suffix("oft_blocks", "peft"),
        "oft_R.weight": Suffix("oft_blocks", "peft"),
        "boft_R": Suffix("boft_R", "peft"),
        "boft_s": Suffix("boft_s", "peft"),
        "ia3_l": Suffix("ia3_l", "peft"),
        **{
            name: Suffix(name, "kohya")
            for name in (
                *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
                *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
                *("oft_blocks", "on_input"),
            )
        },
    }
)

COMPONENTS = frozenset(
    {
        *("unet", "transformer", "transformer_2", "diffusion_model"),
        *("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4"),
        *("clip_l", "clip_g", "t5", "t5xxl"),
    }
)
"""First segments of dotted keys that name a component; without one, the prefix is empty."""

_FLAT_PREFIX = re.compile(r"(lora_(?:unet_?|te\d?|transformer|prior_unet|prior_te)|lycoris)_(?=[^_])")
_COMFY_TEXT_ENCODER = re.compile(r"(text_encoders\.\w+(?:\.transformer)?)\.(?=.)")
_PEFT = "base_model.model"
_XLABS = re.compile(r"((?:double|single)_blocks\.\d+)\.processor\.(qkv|proj)_lora(\d?)")
_XLABS_MODULES: Mapping[tuple[str, str], str] = {
    ("qkv", "1"): "img_attn.qkv",
    ("proj", "1"): "img_attn.proj",
    ("qkv", "2"): "txt_attn.qkv",
    ("proj", "2"): "txt_attn.proj",
    # the first three quarters of linear1; diffusers' converter reads it as to_q, to_k, to_v of the single block
    ("qkv", ""): "linear1_qkv",
    ("proj", ""): "linear2",
}
_PROCESSOR_LORA = re.compile(r"(.*?\.?)([^.]+)_lora\d?")
_TEXT_ENCODER_NAMES: Mapping[str, str] = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_NAMED = re.compile(r"lora_[AB]|lora_(?:embedding_[AB]|magnitude_vector)|hada_\w+|lokr_\w+|ia3_l|b?oft_[Rs]")
"""What PEFT writes an adapter's name after; on disk it should be gone, but often is not."""
_BUNDLE = re.compile(r"bundle_emb\.(.+?)\.(?:string_to_param\..+|[^.]+)")


class Place(NamedTuple):
    """Where a tensor belongs."""

    prefix: str
    name: str
    path: str
    """The module as PEFT's configuration patterns see it: relative to the wrapped model."""
    site: str
    """How the module is introduced: "flat" (kohya), "peft" (base_model.model), "component", "comfy" or "bare"."""


class Key(NamedTuple):
    """A file key, read."""

    place: Place
    role: str
    style: str


def read(key: str) -> Key | None:
    """The component, module and role a key names, or None when its suffix is in no table."""
    found = _split(key)
    if found is None:
        return None
    stem, suffix = found
    if not stem or (suffix.style == "old" and not _PROCESSOR_LORA.fullmatch(stem)):
        return None
    return Key(locate(stem), suffix.role, suffix.style)


def bundled_token(key: str) -> str | None:
    """The textual-inversion token a `bundle_emb.<token>.*` key holds, or None for other keys."""
    match = _BUNDLE.fullmatch(key)
    return match[1] if match else None


@lru_cache(maxsize=4096)
def locate(stem: str) -> Place:
    """The place of a key without its suffix: wrappers and prefix taken off, processor spellings rewritten."""
    flat = _FLAT_PREFIX.match(stem)
    if flat and "." not in stem:
        name = stem[flat.end() :]
        return Place(flat[1], name, name, "flat")
    comfy = _COMFY_TEXT_ENCODER.match(stem)
    if comfy:
        name = stem[comfy.end() :]
        return Place(comfy[1], name, name, "comfy")
    prefix, path, site = "", stem.replace("_orig_mod.", ""), "bare"
    while True:
        head, _, rest = path.partition(".")
        if path.startswith(_PEFT + ".") and len(path) > len(_PEFT) + 1:
            path, site = path[len(_PEFT) + 1 :], "peft"
        elif path.startswith("model.diffusion_model."):
            path = path.removeprefix("model.")
        elif not prefix and head in COMPONENTS and rest:
            prefix = head
            if site == "peft":  # a wrapped pipeline: patterns see the component's name too
                return Place(prefix, _rename(rest), path, site)
            path, site = rest, "comfy" if head == "diffusion_model" else "component"
        else:
            break
    if site == "peft" and not prefix:
        prefix = _PEFT
    return Place(prefix, _rename(path), path, site)


def _rename(name: str) -> str:
    """The module an attention-processor name stands for; any other name as it is."""
    xlabs = _XLABS.fullmatch(name)
    if xlabs:
        return f"{xlabs[1]}.{_XLABS_MODULES.get((xlabs[2], xlabs[3]), f'{xlabs[2]}_lora{xlabs[3]}')}"
    name = name.replace(".processor.", ".")
    match = _PROCESSOR_LORA.fullmatch(name)
    if not match:
        return name
    parent, child = match[1], match[2]
    if parent.endswith("self_attn."):
        return parent + _TEXT_ENCODER_NAMES.get(child, child)
    return parent + ("to_out.0" if child == "to_out" else child)


def _split(key: str) -> tuple[str, Suffix] | None:
    """The key without its suffix, and the suffix; an adapter name inside (`lora_A.default.weight`) is passed over."""
    parts = key.rsplit(".", 3)
    for length in range(min(3, len(parts) - 1), 0, -1):
        suffix = SUFFIXES.get(".".join(parts[-length:]))
        if suffix is not None:
            return ".".join(parts[:-length]), suffix
    for kept in (3, 2):  # `lora_A.<adapter>.weight`, then `lora_embedding_A.<adapter>`
        if len(parts) > kept and _NAMED.fullmatch(parts[-kept]):
            suffix = SUFFIXES.get(".".join((parts[-kept], *parts[len(parts) - kept + 2 :])))
            if suffix is not None and (kept == 3 or suffix.role not in ("down", "up")):
                return ".".join(parts[:-kept]), suffix
    return None
