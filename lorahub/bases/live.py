"""A base model described from modules in memory: for models that are not listed, such as a pruned or a test UNet.

The rule: names of files (prefixes, dialects) come from a listed base of the same family, layers from the modules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from lorahub.bases.dialects import aliases
from lorahub.bases.library import get, spans
from lorahub.bases.model import Base, Component
from lorahub.errors import BaseMismatchError

if TYPE_CHECKING:
    from torch import nn

Tables = tuple[dict[str, tuple[int, ...]], dict[str, int], dict[str, tuple[int, ...]]]


def describe(name: str, models: Mapping[str, nn.Module], *, like: str) -> Base:
    """The base called `name` whose components are `models`, named in files as those of the listed base `like` are.

    models: component (`unet`, `text_encoder`) -> model; the meta device is enough. Hand the result to `load` and `save`
    as `base`, or to `register`, so that its name is enough.
    Raises NotFoundError when `like` is not listed, BaseMismatchError when it lacks one of the components.
    """
    family = get(like)
    strange = [part for part in models if part not in family.components]
    if strange:
        raise BaseMismatchError(f"{family.name} has no {strange[0]}: it has {', '.join(family.components)}")
    components = {part: _component(family.components[part], model) for part, model in models.items()}
    return Base(name, name, (), (), components)


def _component(like: Component, model: nn.Module) -> Component:
    layers, norms, embeddings = tables(model)
    shapes = layers | {module: (length,) for module, length in norms.items()} | embeddings
    rows = {module: shape[0] for module, shape in shapes.items()}
    named = {
        dialect: {alias: spans(meaning, rows) for alias, meaning in aliases(dialect, shapes).items()}
        for dialect in like.aliases
    }
    return replace(like, layers=layers, norms=norms, embeddings=embeddings, aliases=named)


def tables(model: nn.Module) -> Tables:
    """Weight shapes of layers, lengths of normalisations, shapes of embeddings, in the order of `named_modules`."""
    import torch

    layers: dict[str, tuple[int, ...]] = {}
    norms: dict[str, int] = {}
    embeddings: dict[str, tuple[int, ...]] = {}
    is_clip = type(model).__name__.startswith("CLIPText")
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is None:
            continue
        name, shape = _file_name(name) if is_clip else name, tuple(weight.shape)
        if isinstance(module, torch.nn.Embedding):
            embeddings[name] = shape
        elif len(shape) == 1:
            norms[name] = shape[0]
        else:
            layers[name] = shape
    return layers, norms, embeddings


def _file_name(name: str) -> str:
    """transformers 5 drops `text_model.` from the modules of CLIPTextModel; LoRA files all write it."""
    return name if re.match(r"text_(model|projection)\b", name) else f"text_model.{name}"
