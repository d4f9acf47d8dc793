"""Lengths and angles of adapters: the Frobenius inner product <A, B> = Σ_layers tr(ΔA^T ΔB), from factors alone.

With ΔA = U1 V1 and ΔB = U2 V2, tr(ΔA^T ΔB) = sum((U1^T U2) * (V1 V2^T)): two small products, never a dense matrix.
Offsets (biases, norms) count as further coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from lorahub.algebra.adapter import Adapter
from lorahub.algebra.lowrank import LowRank
from lorahub.algebra.machine import in_numpy, keep_freed_memory, one_thread, side_by_side
from lorahub.algebra.recipe import Step
from lorahub.errors import BaseMismatchError, UsageError, VerificationError

_Use = TypeVar("_Use")

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


@dataclass(frozen=True, eq=False)
class Products:
    """What the inner products and singular values of k versions of one layer follow from: all their factors, squared.

    up = B^T B and down = A A^T, [R, R], of the factors side by side, from products in `dtype`. scales [R, k]: of every
    column in its version, 0 in the others. columns: where those of each version are.
    """

    up: Matrix
    down: Matrix
    scales: Matrix
    columns: tuple[slice, ...]
    dtype: torch.dtype

    @cached_property
    def inner(self) -> Matrix:
        """The inner products of the versions, [k, k]."""
        gram: Matrix = self.scales.T @ (self.up * self.down) @ self.scales
        return (gram + gram.T) / 2

    @property
    def magnitude(self) -> Matrix:
        """Sums of the absolute values of what `inner` sums, [k, k]."""
        result: Matrix = abs(self.scales).T @ abs(self.up * self.down) @ abs(self.scales)
        return result

    def of(self, version: int) -> tuple[Matrix, Matrix, Matrix]:
        """(B^T B, A A^T, scales) of one version."""
        own = self.columns[version]
        return self.up[own, own], self.down[own, own], self.scales[own, version]


@in_numpy()
def layer_products(layers: Sequence[LowRank], device: str | torch.device = "cpu") -> Products:
    """The products of k versions of one layer, good for their inner products. Raises VerificationError for NaN or Inf."""
    found = _products(layers, torch.float32, device)
    overflow = not np.isfinite(found.inner).all()
    if overflow or (found.inner.diagonal() < _CANCELLATION * found.magnitude.diagonal()).any():
        found = _products(layers, torch.float64, device)
        if not np.isfinite(found.inner).all():
            raise VerificationError("the weights hold NaN or Inf")
    return found


def _products(layers: Sequence[LowRank], dtype: torch.dtype, device: str | torch.device) -> Products:
    ends = np.cumsum([layer.rank for layer in layers])
    columns = tuple(slice(end - layer.rank, end) for layer, end in zip(layers, ends, strict=True))
    scales = np.zeros((int(ends[-1]), len(layers)))
    for index, layer in enumerate(layers):
        scales[columns[index], index] = layer.scales().numpy()
    blocks = tuple(block for layer in layers for block in layer.blocks)
    if not blocks:
        return Products(np.zeros((0, 0)), np.zeros((0, 0)), scales, columns, dtype)
    up, down = LowRank(layers[0].shape, blocks).unscaled(dtype, device)  # side by side: one product has all pairs
    if up.device.type == "cpu":
        gram_up, gram_down = symmetric(up.detach().numpy()), symmetric(down.detach().numpy().T)
    else:
        gram_up, gram_down = square(up).cpu().numpy(), square(down.T).cpu().numpy()
    return Products(gram_up, gram_down, scales, columns, dtype)


def layer_gram(layers: Sequence[LowRank], device: str | torch.device = "cpu") -> Tensor:
    """Matrix of inner products of k versions of one layer, float64 [k, k]. Raises VerificationError for NaN or Inf."""
    return torch.from_numpy(layer_products(layers, device).inner)


def gram(adapters: Sequence[Adapter], device: str | torch.device = "cpu") -> Tensor:
    """The matrix of all inner products, float64 [k, k], on the CPU.

    Raises BaseMismatchError for mixed bases, VerificationError for NaN or Inf in the weights.
    """
    return sum(layer_grams(adapters, device).values(), start=offset_gram(adapters))


def layer_grams(adapters: Sequence[Adapter], device: str | torch.device = "cpu") -> Mapping[str, Tensor]:
    """layer name -> matrix of inner products of the adapters on that layer, float64 [k, k]."""
    return dict(layer_by_layer(adapters, lambda name, products: torch.from_numpy(products.inner), device))


def layer_by_layer(
    adapters: Sequence[Adapter], use: Callable[[str, Products], _Use], device: str | torch.device = "cpu"
) -> Iterator[tuple[str, _Use]]:
    """(name, use(name, products)) of every layer that any of the adapters has; on a CPU several at once.

    Raises BaseMismatchError for adapters that live in different spaces, VerificationError that names the layer.
    """
    keep_freed_memory()
    for other in adapters[1:]:
        if other.base != adapters[0].base:
            raise BaseMismatchError(
                f"cannot compare {adapters[0].name!r} ({adapters[0].base}) and {other.name!r} ({other.base}): "
                "adapters of different bases live in different spaces"
            )

    def work(name: str) -> tuple[str, _Use]:
        present = [adapter.layers[name] for adapter in adapters if name in adapter.layers]
        if len(shapes := {layer.matrix_shape for layer in present}) > 1:
            raise BaseMismatchError(f"{name} has different shapes: {' and '.join(map(str, sorted(shapes)))}")
        zero = LowRank(present[0].shape, ())
        try:
            return name, use(name, layer_products([adapter.layers.get(name, zero) for adapter in adapters], device))
        except VerificationError as error:
            raise VerificationError(f"{name}: {error}") from None

    names = dict.fromkeys(name for adapter in adapters for name in adapter.layers)
    with one_thread():
        yield from side_by_side(work, names) if torch.device(device).type == "cpu" else map(work, names)


def offset_gram(adapters: Sequence[Adapter]) -> Tensor:
    """The matrix of inner products of the offsets alone, float64 [k, k]; raises what `gram` raises."""
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
    if float(sum(grams.values(), start=offset_gram([adapter, to]))[1, 1]) <= 0:
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
