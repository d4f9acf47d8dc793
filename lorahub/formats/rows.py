"""Fused and split layers: a file layer may be a stack of rows of several canonical layers (qkv), and the other way round.

Both directions are exact. Splitting copies `down` and slices `up`. Joining stacks `up` when all parts share one
`down` (as they do after splitting), and otherwise builds the block-diagonal product, whose ranks add.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lorahub.bases.model import Span

Make = Callable[[torch.dtype], tuple[Tensor, Tensor]]
"""Makes (up, down) in a dtype."""


class Factored(Protocol):
    """What encoding needs of a layer; `lorahub.algebra.LowRank` is one."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def rank(self) -> int: ...
    @property
    def stored_dtype(self) -> torch.dtype | None: ...
    @property
    def terms(self) -> Sequence[tuple[Factored, float]]: ...
    def factors(self, dtype: torch.dtype = ...) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class FileLayer:
    """A layer as a file spells it: name, weight shape, rank, and the function that makes (up, down) in a dtype.

    stored_dtype: the dtype in which the factors exist already, so that taking them in it loses nothing; else None.
    terms: (layer, factor): what it is the sum of, where it is a sum; the columns of its factors are theirs, in order.
    """

    name: str
    shape: tuple[int, ...]
    rank: int
    make: Make
    stored_dtype: torch.dtype | None = None
    terms: tuple[tuple[Factored, float], ...] = ()

    @classmethod
    def of(cls, name: str, layer: Factored) -> FileLayer:
        return cls(name, layer.shape, layer.rank, layer.factors, layer.stored_dtype, tuple(layer.terms))


def split(spans: Sequence[Span], up: Tensor, rows: Mapping[str, int]) -> list[tuple[str, Tensor]]:
    """(canonical layer, its rows of `up` [out, r]) for each layer that the spans cover; views where possible.

    rows: canonical layer -> number of rows of its weight. Rows of a layer that no span covers are zero.
    """
    pieces: dict[str, list[tuple[Span, Tensor]]] = {}
    position = 0
    for span in spans:
        count = span.stop - span.start
        pieces.setdefault(span.layer, []).append((span, up[position : position + count]))
        position += count
    return [(layer, _assemble(parts, rows[layer])) for layer, parts in pieces.items()]


def _assemble(parts: list[tuple[Span, Tensor]], rows: int) -> Tensor:
    first_span, first = parts[0]
    if len(parts) == 1 and (first_span.start, first_span.stop) == (0, rows):
        return first
    whole = torch.zeros(rows, *first.shape[1:], dtype=first.dtype)
    for span, part in parts:
        whole[span.start : span.stop] = part
    return whole


def join(
    spans: Sequence[Span] | None, name: str, layers: Mapping[str, Factored], shapes: Mapping[str, tuple[int, ...]]
) -> FileLayer:
    """The file layer `name` that stacks the given spans of `layers`; spans of layers that are absent are zero rows."""
    if spans is None:
        return FileLayer.of(name, layers[name])
    if len(spans) == 1 and (spans[0].start, spans[0].stop) == (0, shapes[spans[0].layer][0]):  # only another name
        return FileLayer.of(name, layers[spans[0].layer])
    present = list(dict.fromkeys(span.layer for span in spans if span.layer in layers))
    out = sum(span.stop - span.start for span in spans)
    shape = (out, *shapes[spans[0].layer][1:])
    shared = _share_down([layers[layer] for layer in present])
    rank = layers[present[0]].rank if shared else sum(layers[layer].rank for layer in present)

    def make(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        factors = {layer: layers[layer].factors(dtype) for layer in present}
        down = factors[present[0]][1] if shared else torch.cat([factors[layer][1] for layer in present])
        up = torch.zeros(out, rank, dtype=dtype)
        first_column = {}
        column = 0
        for layer in present:
            first_column[layer] = 0 if shared else column
            column += layers[layer].rank
        position = 0
        for span in spans:
            if span.layer in factors:
                part = factors[span.layer][0][span.start : span.stop]
                start = first_column[span.layer]
                up[position : position + len(part), start : start + part.shape[1]] = part
            position += span.stop - span.start
        return up, down

    return FileLayer(name, shape, rank, make)


def _share_down(layers: Sequence[Factored]) -> bool:
    """Whether all the layers have the same `down`, as the parts of a fused layer do."""
    if len(layers) < 2:
        return True
    if len({layer.rank for layer in layers}) > 1 or len({math.prod(layer.shape[1:]) for layer in layers}) > 1:
        return False
    first = layers[0].factors(torch.float32)[1]
    return all(torch.equal(first, layer.factors(torch.float32)[1]) for layer in layers[1:])
