"""How the keys of base models name modules: the wrappers of single files, and OpenCLIP's text encoder.

The rule: a key becomes a prefix and a module that `Base.find` knows, with the tables of `bases` and `formats.keys`; only
what no adapter file spells is written down here.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from lorahub.formats import keys


class Spelled(NamedTuple):
    """A parameter as a key names it: of one module, or of several of equal size stacked top to bottom."""

    prefix: str
    modules: tuple[str, ...]
    kind: str
    """weight or bias"""
    transposed: bool = False
    """OpenCLIP keeps its text projection as [in, out]."""


_WRAPPERS = {
    "cond_stage_model.transformer.": "text_encoder",
    "cond_stage_model.model.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "conditioner.embedders.0.model.": "text_encoder",
    "conditioner.embedders.1.model.": "text_encoder_2",
}
"""What CompVis and Stability put before the modules of a text encoder -> its component."""

_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_OPEN_CLIP_BLOCK = {
    "attn.in_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.out_proj": ("self_attn.out_proj",),
    "ln_1": ("layer_norm1",),
    "ln_2": ("layer_norm2",),
    "mlp.c_fc": ("mlp.fc1",),
    "mlp.c_proj": ("mlp.fc2",),
}
_OPEN_CLIP = {
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection",
}
_CLIP_LEVEL = re.compile(r"(encoder\.layers\.\d|embeddings\.|final_layer_norm)")
_EMBEDDING = re.compile(r"(^|\.)(token_embedding|position_embedding|embed_tokens|shared|relative_attention_bias)$")


def read(key: str, component: str) -> Spelled | None:
    """What a key names, or None when it is no weight or bias; `component` is that of the file, "" for a single file."""
    stem, kind = _split(key)
    if component:
        return Spelled(component, (_clip(component, stem),), kind) if kind else None
    for wrapper, owner in _WRAPPERS.items():
        if stem.startswith(wrapper):
            module = stem.removeprefix(wrapper)
            return _open_clip(owner, module, kind) or (Spelled(owner, (_clip(owner, module),), kind) if kind else None)
    place = keys.locate(stem)
    return Spelled(place.prefix, (_clip(place.prefix, place.name),), kind) if kind else None


def is_embedding(layer: str) -> bool:
    """Whether a layer of an unlisted base looks up rows instead of multiplying."""
    return _EMBEDDING.search(layer) is not None


def _split(key: str) -> tuple[str, str]:
    match = re.fullmatch(r"(.+)[._](weight|bias)", key)
    return (match[1], match[2]) if match else (key, "")


def _open_clip(owner: str, module: str, kind: str) -> Spelled | None:
    block = _BLOCK.fullmatch(module)
    if block:
        inner = _OPEN_CLIP_BLOCK.get(block[2])
        start = f"text_model.encoder.layers.{block[1]}."
        return Spelled(owner, tuple(start + name for name in inner), kind) if inner and kind else None
    name = _OPEN_CLIP.get(module)
    return Spelled(owner, (name,), kind or "weight", module == "text_projection" and not kind) if name else None


def _clip(prefix: str, module: str) -> str:
    """transformers 5 leaves out the level `text_model` that adapters name."""
    return f"text_model.{module}" if prefix.startswith("text_enc") and _CLIP_LEVEL.match(module) else module
