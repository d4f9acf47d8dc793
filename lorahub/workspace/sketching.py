"""Sketches of adapters: see `lorahub.workspace.sketch` for what they are. Reads weights, so it imports torch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lorahub.algebra.adapter import Adapter
from lorahub.algebra.geometry import layer_gram
from lorahub.algebra.lowrank import LowRank
from lorahub.workspace.sketch import BUCKETS, KIND, WIDTH, bucket, pack, signs
from registry.records import Sketch


def sketch(adapter: Adapter, *, norms: Mapping[str, float] | None = None) -> Sketch:
    """The sketch of an adapter; `norms` are those of its layers, if known.

    Raises VerificationError for NaN or Inf in the weights.
    """
    buckets = torch.zeros(BUCKETS, WIDTH, WIDTH, dtype=torch.float64)
    square = 0.0
    for name, layer in adapter.layers.items():
        if layer.rank:
            buckets[bucket(name)] += core(name, layer)
            square += norms[name] ** 2 if norms and name in norms else float(layer_gram([layer]))
    return Sketch(kind=KIND, base=adapter.base, norm=max(square, 0.0) ** 0.5, data=pack(buckets.flatten().numpy()))


def core(name: str, layer: LowRank) -> Tensor:
    """S^T ΔW T of one layer, float64 [8, 8]."""
    found = _core(name, layer, torch.float32)
    return found if bool(torch.isfinite(found).all()) else _core(name, layer, torch.float64)  # float32 overflowed


def _core(name: str, layer: LowRank, dtype: torch.dtype) -> Tensor:
    rows, columns = layer.matrix_shape
    left, right = (
        torch.from_numpy(signs(*side)).to(dtype) for side in ((f"{name}|out", rows), (f"{name}|in", columns))
    )
    total = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    for block in layer.blocks:
        product = (left.T @ block.up.to(dtype)).double() @ (block.down.to(dtype) @ right).double()
        total += (block.scale / WIDTH) * product
    return total
