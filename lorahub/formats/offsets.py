"""Additive one-dimensional parameters (biases, norms) as kohya files spell them.

The rule: where the file fuses layers or swaps their halves, an offset is laid out as the rows of the weight are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lorahub.bases.model import Base, Span, flatten


def kohya_offsets(offsets: Mapping[str, Tensor], base: Base | None) -> dict[str, Tensor]:
    """`.diff` / `.diff_b` keys of one-dimensional parameters, as ComfyUI and LyCORIS read them."""
    suffixes = {"weight": "diff", "bias": "diff_b"}
    result: dict[str, Tensor] = {}
    for parameter, offset in offsets.items():
        layer, _, kind = parameter.rpartition(".")
        if base is None:
            result[f"{layer}.{suffixes[kind]}"] = offset
            continue
        name, _, module = layer.partition(".")
        component = base.components[name]
        aliases = component.aliases[component.kohya_dialect] if component.kohya_dialect != "diffusers" else {}
        alias = next((alias for alias, spans in aliases.items() if any(span.layer == module for span in spans)), module)
        parts = aliases.get(alias, (Span(module, 0, len(offset)),))
        key = f"{component.kohya_prefix}_{flatten(alias)}.{suffixes[kind]}"
        result[key] = _stack(parts, [offsets.get(f"{name}.{span.layer}.{kind}") for span in parts])
    return result


def _stack(spans: Sequence[Span], offsets: Sequence[Tensor | None]) -> Tensor:
    """The offset of a stack of spans; those of modules that have none are zero."""
    pieces = []
    for span, found in zip(spans, offsets, strict=True):
        pieces.append(torch.zeros(span.stop - span.start) if found is None else found[span.start : span.stop])
    return torch.cat(pieces)
