"""Lengths and angles of adapters: the Frobenius inner product <A, B> = Σ_layers tr(ΔA^T ΔB), from factors alone.

With ΔA = U1 V1 and ΔB = U2 V2, tr(ΔA^T ΔB) = sum((U1^T U2) * (V1 V2^T)): two small products, never a dense matrix.
Offsets (biases, norms) count as further coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorahub.algebra.adapter import Adapter
from lorahub.algebra.lowrank import LowRank
from lorahub.algebra.machine import in_numpy, keep_freed_memory, one_thread, side_by_side
from lorahub.algebra.recipe import Step
from lorahub.errors import BaseMismatchError, UsageError, VerificationError

Matrix = np.ndarray[Any, np.dtype[np.floating[Any]]]

CHUNK_ROWS = 1280
"""float32 products are summed over this many rows at a time, and the sums in float64."""

_CANCELLATION = 1e-3
"""Below this share of the magnitudes that went in, a float32 product has lost three digits: float64 takes over."""


def product(left: Tensor, right: Tensor) -> Tensor:
    """left^T @ right in float64, from [n, a] and [n, b]: products in their dtype, sums over chunks of n in float64."""
    if left.dtype == torch.float64:
        return left.T @ right
    total = torch.zeros(left.shape[1], right.shape[1], dtype=torch.float64, device=left.device)
    for chunk, other in zip(torch.split(left, CHUNK_ROWS), torch.split(right, CHUNK_ROWS), strict=True):
        total += chunk.T @ other
    return total


def square(columns: Tensor) -> Tensor:
    """columns^T @ columns in float64, from [n, a]: `product` in half the operations where NumPy can take it."""
    if columns.device.type != "cpu":
        return product(columns, columns)
    with in_numpy():
        return torch.from_numpy(symmetric(columns.detach().numpy()))


def symmetric(columns: np.ndarray[Any, Any]) -> Matrix:
    """`square` in NumPy, which asks BLAS for a symmetric product (syrk); torch has none. For within `in_numpy`."""
    step = CHUNK_ROWS if columns.dtype == np.float32 else max(len(columns), 1)
    first = columns[:step]
    total: Matrix = (first.T @ first).astype(np.float64, copy=False)
    for start in range(step, len(columns), step):
        chunk = columns[start : start + step]
        total += chunk.T @ chunk
    return total


@in_numpy()
def layer_gram(layers: Sequence[LowRank], device: str | torch.device = "cpu") -> Tensor:
    """Matrix of inner products of k versions of one layer, float64 [k, k]. Raises VerificationError for NaN or Inf."""
    gram, magnitude = _layer_gram(layers, torch.float32, device)
    overflow = not np.isfinite(gram).all()
    if overflow or (gram.diagonal() < _CANCELLATION * magnitude.diagonal()).any():
        gram, _ = _layer_gram(layers, torch.float64, device)
        if not np.isfinite(gram).all():
            raise VerificationError("the weights hold NaN or Inf")
    return torch.from_numpy(gram)


def _layer_gram(layers: Sequence[LowRank], dtype: torch.dtype, device: str | torch.device) -> tuple[Matrix, Matrix]:
    """(inner products, sums of the absolute values of their terms), both [k, k]."""
    blocks = tuple(block for layer in layers for block in layer.blocks)
    if not blocks:
        return np.zeros((len(layers), len(layers))), np.zeros((len(layers), len(layers)))
    up, down = LowRank(layers[0].shape, blocks).unscaled(dtype, device)  # side by side: one product has all pairs
    if up.device.type == "cpu":
        terms = symmetric(up.detach().numpy()) * symmetric(down.detach().numpy().T)
    else:
        terms = (square(up) * square(down.T)).cpu().numpy()
    scales, column = np.zeros((len(terms), len(layers))), 0
    for index, layer in enumerate(layers):
        for block in layer.blocks:
            scales[column : column + block.rank, index] = block.scale
            column += block.rank
    gram, magnitude = scales.T @ terms @ scales, abs(scales).T @ abs(terms) @ abs(scales)
    return (gram + gram.T) / 2, magnitude


def gram(adapters: Sequence[Adapter], device: str | torch.device = "cpu") -> Tensor:
    """The matrix of all inner products, float64 [k, k], on the CPU.

    Raises BaseMismatchError for mixed bases, VerificationError for NaN or Inf in the weights.
    """
    return sum(layer_grams(adapters, device).values(), start=_offset_gram(adapters))


@one_thread()
def layer_grams(adapters: Sequence[Adapter], device: str | torch.device = "cpu") -> Mapping[str, Tensor]:
    """layer name -> matrix of inner products of the adapters on that layer, float64 [k, k]."""
    keep_freed_memory()
    for other in adapters[1:]:
        if other.base != adapters[0].base:
            raise BaseMismatchError(
                f"cannot compare {adapters[0].name!r} ({adapters[0].base}) and {other.name!r} ({other.base}): "
                "adapters of different bases live in different spaces"
            )
    names = list(dict.fromkeys(name for adapter in adapters for name in adapter.layers))

    def work(name: str) -> Tensor:
        present = [index for index, adapter in enumerate(adapters) if name in adapter.layers]
        shapes = {adapters[index].layers[name].matrix_shape for index in present}
        if len(shapes) > 1:
            raise BaseMismatchError(f"{name} has different shapes: {' and '.join(map(str, sorted(shapes)))}")
        try:
            known = layer_gram([adapters[index].layers[name] for index in present], device)
        except VerificationError as error:
            raise VerificationError(f"{name}: {error}") from None
        if len(present) == len(adapters):
            return known
        result = torch.zeros(len(adapters), len(adapters), dtype=torch.float64)
        result[torch.tensor(present)[:, None], torch.tensor(present)] = known
        return result

    return dict(
        zip(names, side_by_side(work, names) if torch.device(device).type == "cpu" else map(work, names), strict=True)
    )


def _offset_gram(adapters: Sequence[Adapter]) -> Tensor:
    count = len(adapters)
    result = torch.zeros(count, count, dtype=torch.float64)
    for i, one in enumerate(adapters):
        for j, other in enumerate(adapters):
            for name in one.offsets.keys() & other.offsets.keys():
                mine, theirs = one.offsets[name].double(), other.offsets[name].double()
                if mine.shape != theirs.shape:
                    raise BaseMismatchError(
                        f"{name} has different lengths: {list(mine.shape)} and {list(theirs.shape)}"
                    )
                result[i, j] += torch.dot(mine, theirs)
                if not bool(torch.isfinite(result[i, j])):
                    raise VerificationError(f"{name} holds NaN or Inf")
    return result


def inner(one: Adapter, other: Adapter) -> float:
    """<one, other>, the sum over layers of tr(ΔW_one^T ΔW_other)."""
    return float(gram([one, other])[0, 1])


def norm(adapter: Adapter) -> float:
    """Frobenius norm over all layers, sqrt(<a, a>)."""
    return math.sqrt(max(float(gram([adapter])[0, 0]), 0.0))


def cosine(one: Adapter, other: Adapter) -> float:
    """Cosine of the angle between two adapters, in [-1, 1]. Raises UsageError when one of them is zero."""
    matrix = gram([one, other])
    lengths = math.sqrt(max(float(matrix[0, 0]), 0.0) * max(float(matrix[1, 1]), 0.0))
    if lengths == 0:
        raise UsageError("the angle to a zero adapter is undefined")
    return max(-1.0, min(1.0, float(matrix[0, 1]) / lengths))


def project(adapter: Adapter, onto: Adapter) -> Adapter:
    """The part of `adapter` along `onto`: (<a, b> / <b, b>) · b. Raises UsageError when `onto` is zero."""
    matrix = gram([adapter, onto])
    if float(matrix[1, 1]) <= 0:
        raise UsageError("cannot project onto a zero adapter")
    return onto * (float(matrix[0, 1]) / float(matrix[1, 1]))


def orthogonal(adapter: Adapter, to: Adapter) -> Adapter:
    """The part of `adapter` that is at right angles to `to` in every layer l: A_l - (<A_l, T_l> / <T_l, T_l>) · T_l.

    Stricter than `adapter - project(adapter, to)`, which lets layers that point along `to` and against it cancel. Exact;
    a layer's rank grows by that of T_l. Layers (and offsets) that one of the two lacks stay as they are.
    Raises UsageError when `to` is zero, and what `gram` raises.
    """
    grams = layer_grams([adapter, to])
    if float(sum(grams.values(), start=_offset_gram([adapter, to]))[1, 1]) <= 0:
        raise UsageError(f"{to.name} is zero: no direction is at right angles to it")
    layers, offsets = dict(adapter.layers), dict(adapter.offsets)
    for name in adapter.layers.keys() & to.layers.keys():
        along, square = float(grams[name][0, 1]), float(grams[name][1, 1])
        if square > 0:
            layers[name] = layers[name] - (along / square) * to.layers[name]
    for name in adapter.offsets.keys() & to.offsets.keys():
        mine, theirs = adapter.offsets[name].double(), to.offsets[name].double()
        square = float(theirs @ theirs)
        if square > 0:
            offsets[name] = (mine - (float(mine @ theirs) / square) * theirs).float()
    recipe = Step("orthogonal", {}, (adapter.recipe, to.recipe))
    return Adapter(adapter.base, layers, offsets, adapter.embeddings, recipe)


def normalised(adapter: Adapter, length: float) -> Adapter:
    """The adapter scaled so that its norm is `length`. Raises UsageError for a zero adapter, and what `norm` raises."""
    own = norm(adapter)
    if own == 0:
        raise UsageError(f"{adapter.name} is zero: no factor gives it a length")
    return rescaled(adapter, length / own)


def rescaled(adapter: Adapter, factor: float) -> Adapter:
    """`normalised` by a factor that is known."""
    return replace(adapter * factor, recipe=Step("normalised", {"factor": factor}, (adapter.recipe,)))
