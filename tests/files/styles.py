"""A small SD 1.5 adapter of a UNet and its encoder, and what the tests of saving look at."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import lorahub as lh
from lorahub import bases
from lorahub.algebra.recipe import Source
from lorahub.files.building import from_state_dict

from . import making

BLOCK = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
LAYERS = [
    f"{BLOCK}.attn1.to_q",
    f"{BLOCK}.ff.net.0.proj",
    "unet.mid_block.resnets.0.conv1",
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
    "text_encoder.text_model.encoder.layers.0.self_attn.out_proj",
]


def style(name: str = "style", *, seed: int = 1, metadata: dict[str, str] | None = None, **settings: Any) -> lh.Adapter:
    raw = making.trained(bases.get("sd15"), LAYERS, seed=seed, **settings)
    loaded = from_state_dict(
        making.peft_keys(raw), base="sd15", name=name, metadata={**making.peft_metadata(raw), **(metadata or {})}
    )
    source = Source(name, hashlib.sha256(name.encode()).hexdigest(), metadata or {})
    return lh.Adapter(loaded.base, loaded.layers, recipe=source)


def multiplied(adapter: lh.Adapter, up: float, down: float) -> lh.Adapter:
    """The adapter with its factors multiplied by these."""
    layers = {
        name: lh.LowRank.of(layer.up * up, layer.down * down, shape=layer.shape)
        for name, layer in adapter.layers.items()
    }
    return lh.Adapter(adapter.base, layers)


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def metadata(path: Path) -> dict[str, str]:
    found = making.header(path)["__metadata__"]
    assert isinstance(found, dict)
    return found
