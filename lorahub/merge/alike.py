"""Layers that are alike, side by side: one shape, the same adapters, of the same ranks.

On a device they go together, [layers, ...], because starting a small operation costs more there than it does; on the CPU
there is one. Functions take and give layer name -> what belongs to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lorahub.algebra.batched import Choose, Factored, decompose_all
from lorahub.algebra.decompose import decompose, naming
from lorahub.algebra.geometry import square
from lorahub.algebra.lowrank import LowRank
from lorahub.errors import VerificationError

Alike = Mapping[str, Mapping[int, LowRank]]
"""Layer name -> index of an adapter -> its layer."""
Chooser = Callable[[str], Choose]
"""Layer name -> from its singular values (float64, descending, on the CPU) to how many are wanted."""
Pair = tuple[Tensor, Tensor]
"""(up [layers, m, r], down [layers, r, n]) of matrices up @ down; weight and scale are in `up`."""

_CONTENT = 1e-7
"""Singular values below this share of the largest are rounding, and have no direction."""


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Along a new first dimension; a single one is not copied."""
    return torch.stack([*tensors]) if len(tensors) > 1 else tensors[0][None]


def factors_of(layers: Alike, dtype: torch.dtype, device: str) -> dict[int, Pair]:
    """Index of an adapter -> its factors of all these layers, which are alike."""

    def pair(i: int) -> Pair:
        up, down = zip(*(each[i].factors(dtype, device) for each in layers.values()), strict=True)
        return stack(up), stack(down)

    return {i: pair(i) for i in next(iter(layers.values()))}


def check_finite(names: Iterable[str], grams: Iterable[Tensor]) -> None:
    """Raises VerificationError that names the layer, for NaN or Inf in what these [layers, k, k] are Gram matrices of."""
    finite = torch.isfinite(torch.stack([each.sum((1, 2)) for each in grams]).sum(0))
    for name, fine in zip(names, finite.cpu().tolist(), strict=True):
        if not fine:
            raise VerificationError(f"{name}: the weights hold NaN or Inf")


def gram_of(columns: Tensor, dtype: torch.dtype) -> Tensor:
    """X^T X of each of [layers, n, a] in float64: on the CPU from products in `dtype`, elsewhere in float64."""
    if columns.device.type == "cpu":
        return stack([square(each.to(dtype)) for each in columns])
    wide = columns.double()
    return wide.mT @ wide


def decomposed(
    layers: Mapping[str, LowRank], chooser: Chooser, exact: bool, device: str, dtype: torch.dtype | None = None
) -> dict[str, Factored]:
    """Of every layer the triplets wanted: on a device together and in float64, on the CPU one by one.

    exact: in float64 on the CPU too. dtype: what the factors are made in there, if not in that of the decomposition.
    Raises VerificationError that names the layer, for NaN or Inf.
    """
    if device != "cpu":
        return dict(decompose_all(layers, chooser, device))
    result: dict[str, Factored] = {}
    for name, layer in layers.items():
        if not layer.rank:
            result[name] = zero(layer)
            continue
        with naming(name):
            made = decompose(layer, chooser(name), exact=exact)
        made = replace(made, left=made.left.to(dtype=dtype), right=made.right.to(dtype=dtype))
        result[name] = Factored(made.sigma, *made.factors())
    return result


def content(sigma: Tensor) -> int:
    """How many singular values are more than rounding."""
    return int((sigma > _CONTENT * sigma[:1]).sum())


def with_content(chooser: Chooser) -> Chooser:
    """What is chosen, but no rounding."""
    return lambda name: lambda sigma: min(chooser(name)(sigma), content(sigma))


def zero(layer: LowRank) -> Factored:
    """No triplets, of a layer of this shape."""
    return Factored(torch.zeros(0, dtype=torch.float64), *LowRank(layer.shape, ()).factors())
