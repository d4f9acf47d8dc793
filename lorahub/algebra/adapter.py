"""An adapter is a vector: for each layer of its base that it touches, a low-rank ΔW. This module is the vector space.

Layers that are absent are zero. Adapters of different bases live in different spaces and cannot be mixed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lorahub.algebra.lowrank import LowRank
from lorahub.algebra.recipe import Recipe, Source, Step, combine, sources
from lorahub.errors import BaseMismatchError, ConflictError, UsageError


@dataclass(frozen=True, eq=False)
class Adapter:
    """A vector over a base: `+ - * /` and unary minus are exact; nothing here forms a dense matrix.

    base: name of the base (`sdxl`), or `unlisted:<format>` when the base is not known.
    layers: canonical layer name (`unet.down_blocks.1...to_q`) -> ΔW.
    offsets: additive one-dimensional parameters (`unet.conv_in.bias`), float32, which some files carry.
    embeddings: textual-inversion tokens that came along; they are no part of the vector and are never scaled.
    recipe: how it was made.
    """

    base: str
    layers: Mapping[str, LowRank]
    offsets: Mapping[str, Tensor] = field(default_factory=dict)
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)
    recipe: Recipe = field(default_factory=lambda: Source("unnamed"))

    @property
    def parameters(self) -> int:
        """Number of stored factor elements: Σ rank · (out + in)."""
        stored = sum(layer.rank * sum(layer.matrix_shape) for layer in self.layers.values())
        return stored + sum(offset.numel() for offset in self.offsets.values())

    @property
    def name(self) -> str:
        """Short name for messages: that of the one adapter it was made from."""
        names = {source.name for source in sources(self.recipe)}
        return names.pop() if len(names) == 1 else "the combination"

    def __add__(self, other: Adapter) -> Adapter:
        if not isinstance(other, Adapter):
            return NotImplemented
        if self.base != other.base:
            raise BaseMismatchError(
                f"cannot add {self.name!r} ({self.base}) and {other.name!r} ({other.base}): "
                "adapters of different bases live in different spaces"
            )
        layers = dict(self.layers)
        for name, layer in other.layers.items():
            try:
                layers[name] = layers[name] + layer if name in layers else layer
            except BaseMismatchError as error:
                raise BaseMismatchError(f"{name}: {error}") from None
        offsets = dict(self.offsets)
        for name, offset in other.offsets.items():
            if name in offsets and offsets[name].shape != offset.shape:
                raise BaseMismatchError(
                    f"{name}: cannot add lengths {list(offsets[name].shape)} and {list(offset.shape)}"
                )
            offsets[name] = offsets[name] + offset if name in offsets else offset
        return Adapter(
            self.base,
            layers,
            offsets,
            _carry_embeddings(self.embeddings, other.embeddings),
            combine([(1.0, self.recipe), (1.0, other.recipe)]),
        )

    def __mul__(self, factor: float) -> Adapter:
        if not isinstance(factor, (int, float)):
            return NotImplemented
        return Adapter(
            self.base,
            {name: layer * factor for name, layer in self.layers.items()},
            {name: offset * factor for name, offset in self.offsets.items()},
            self.embeddings,
            combine([(float(factor), self.recipe)]),
        )

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Adapter:
        if not isinstance(divisor, (int, float)):
            return NotImplemented
        return self * (1.0 / divisor)

    def __neg__(self) -> Adapter:
        return self * -1.0

    def __sub__(self, other: Adapter) -> Adapter:
        if not isinstance(other, Adapter):
            return NotImplemented
        return self + -other


def weighted(adapter: Adapter, weights: Mapping[str, float]) -> Adapter:
    """The adapter with every layer multiplied by the weight of the first pattern found in its name.

    weights: regular expression (searched in the canonical layer name) -> weight; layers that match none keep theirs.
    Raises UsageError for a pattern that is no regular expression or that matches no layer (a typing mistake).
    """
    find = _first_match(weights, [*adapter.layers, *adapter.offsets])
    return Adapter(
        adapter.base,
        {name: layer * find(name) for name, layer in adapter.layers.items()},
        {name: offset * find(name) for name, offset in adapter.offsets.items()},
        adapter.embeddings,
        Step("weighted", {"weights": dict(weights)}, (adapter.recipe,)),
    )


def _first_match(weights: Mapping[str, float], names: list[str]) -> Callable[[str], float]:
    patterns: list[tuple[re.Pattern[str], float]] = []
    for pattern, weight in weights.items():
        try:
            patterns.append((re.compile(pattern), float(weight)))
        except re.error as error:
            raise UsageError(f"{pattern!r} is not a regular expression: {error}") from None
        if not any(patterns[-1][0].search(name) for name in names):
            example = names[0] if names else "none"
            raise UsageError(f"no layer matches {pattern!r}; layers are named like {example}")

    def find(name: str) -> float:
        return next((weight for pattern, weight in patterns if pattern.search(name)), 1.0)

    return find


def _carry_embeddings(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    merged = dict(mine)
    for token, vector in theirs.items():
        if token in merged and not torch.equal(merged[token], vector):
            raise ConflictError(
                f"both adapters bring a different embedding for the token {token!r}: save one of them without it first"
            )
        merged[token] = vector
    return merged
