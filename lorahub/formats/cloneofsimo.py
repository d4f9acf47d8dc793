"""The spelling of cloneofsimo/lora: `unet:0:up`, where a number is all that names the module. Read-only, SD 1.5.

The numbers count modules in the order in which the trainer walked the model: the diffusers models of early 2023, whose
children registered in an order of their own. At which modules it stopped, the metadata say (`unet` -> a list of class
names); without them the file cannot be read. Keys whose metadata value is `<embed>` are textual-inversion tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from lorahub.errors import FileFormatError
from lorahub.formats.keys import Key, Place

EMBEDDING = "<embed>"
_KEY = re.compile(r"([a-z_0-9]+):(0|[1-9]\d{0,5}):(up|down)")
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_TRANSFORMER_BLOCK: tuple[tuple[str, frozenset[str], tuple[str, ...]], ...] = (
    ("attn1", frozenset({"CrossAttention", "Attention"}), _ATTENTION),
    ("ff", frozenset({"GEGLU"}), ("net.0.proj",)),
    ("attn2", frozenset({"CrossAttention", "Attention"}), _ATTENTION),
)
"""child of a transformer block -> the classes that select it, its linear layers; in the order they were registered."""
_ENCODER_LAYER: tuple[tuple[str, frozenset[str], tuple[str, ...]], ...] = (
    ("self_attn", frozenset({"CLIPAttention"}), ("k_proj", "v_proj", "q_proj", "out_proj")),
    ("mlp", frozenset({"CLIPMLP"}), ("fc1", "fc2")),
)


def place(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> dict[str, Key | None]:
    """Every key of a cloneofsimo file, read (None for keys that are no factors); empty when it is no such file.

    Raises FileFormatError when the metadata do not list the classes, or the numbers do not fit SD 1.5.
    """
    matches = {key: _KEY.fullmatch(key) for key in shapes}
    components = {match[1] for match in matches.values() if match}
    modules = {component: _modules(component, metadata) for component in sorted(components)}
    for component, names in modules.items():
        numbers = {int(match[2]) for match in matches.values() if match and match[1] == component}
        if numbers != set(range(len(names))):
            raise FileFormatError(
                f"{component}: expected modules 0 to {len(names) - 1}, as SD 1.5 has of {metadata[component]}; "
                f"found {len(numbers)} modules up to {max(numbers)}"
            )
    if not components:
        return {}
    return {
        key: Key(Place(match[1], name, name, "component"), match[3], "cloneofsimo")
        if match and (name := modules[match[1]][int(match[2])])
        else None
        for key, match in matches.items()
    }


def _modules(component: str, metadata: Mapping[str, str]) -> list[str]:
    walk = _WALKS.get(component)
    if walk is None:
        raise FileFormatError(f"{component}:0:up: expected one of {', '.join(_WALKS)}, found {component}")
    try:
        classes = json.loads(metadata[component])
    except (KeyError, ValueError, RecursionError):
        raise FileFormatError(f"metadata {component}: expected a JSON list of the classes it adapts") from None
    known = frozenset().union(*(selecting for _, selecting, _ in walk[1]))
    if not isinstance(classes, list) or not classes or not known.issuperset(map(str, classes)):
        raise FileFormatError(f"metadata {component}: expected classes among {sorted(known)}; found {classes!r:.80}")
    return [
        f"{block}.{child}.{layer}"
        for block in walk[0]
        for child, selecting, layers in walk[1]
        if selecting.intersection(classes)
        for layer in layers
    ]


def _transformer_blocks() -> Iterator[str]:
    """The U-Net's transformer blocks; its mid block was registered last."""
    for blocks, numbers, attentions in (("down_blocks", (0, 1, 2), 2), ("up_blocks", (1, 2, 3), 3)):
        for number in numbers:
            for attention in range(attentions):
                yield f"{blocks}.{number}.attentions.{attention}.transformer_blocks.0"
    yield "mid_block.attentions.0.transformer_blocks.0"


_WALKS = {
    "unet": (tuple(_transformer_blocks()), _TRANSFORMER_BLOCK),
    "text_encoder": (tuple(f"text_model.encoder.layers.{number}" for number in range(12)), _ENCODER_LAYER),
}
