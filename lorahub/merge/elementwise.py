"""Merging matrices number by number, in blocks of rows: sparsify each, then agree on one value.

Layers of one shape are merged together, [layers, m, n]. Everything is additions and multiplications in place: on a CPU
selecting by masks is ten times slower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lorahub.merge.alike import Pair
from lorahub.merge.methods import Method, Value
from lorahub.merge.sparsify import block_rows, sparsifier


def merged(
    pairs: Mapping[int, Pair],
    weights: Sequence[float],
    method: Method,
    settings: Mapping[str, Value],
    names: Sequence[str],
) -> Tensor:
    """The merged matrices [layers, m, n]: index of an adapter -> factors, already weighted; adapters without are zero.

    weights: of all adapters. names: of the layers, which the draws depend on.
    """
    up, down = next(iter(pairs.values()))
    steps = {i: sparsifier(method, settings, pair, [f"{name}/{i}" for name in names]) for i, pair in pairs.items()}
    result = up.new_empty(len(up), up.shape[1], down.shape[2])
    height = block_rows((up, down))
    values = up.new_empty(len(pairs), len(up), height, down.shape[2])
    spare = up.new_empty(2, len(up), height, down.shape[2])
    for start in range(0, up.shape[1], height):
        into = result[:, start : start + height]
        rows = into.shape[1]
        for value, (i, (up, down)) in zip(values, pairs.items(), strict=True):
            steps[i](torch.bmm(up[:, start : start + rows], down, out=value[:, :rows]))
        if method.consensus == "ties":
            _elected(values[:, :, :rows], [weights[i] for i in pairs], settings, into, spare[:, :, :rows])
        else:
            _summed(values[:, :, :rows], into).div_(_divisor(weights, str(settings["divide"])))
    return result


def _divisor(weights: Sequence[float], divide: str) -> float:
    total = {"none": 1.0, "count": float(len(weights)), "weights": sum(weights)}[divide]
    return total if abs(total) > 1e-8 else 1.0  # as in mergekit, for weights that cancel


def _summed(values: Tensor, into: Tensor) -> Tensor:
    first, *others = values
    into.copy_(first)
    for value in others:
        into.add_(value)
    return into


def _elected(
    values: Tensor, weights: Sequence[float], settings: Mapping[str, Value], into: Tensor, spare: Tensor
) -> None:
    """The mean of the values whose sign is the elected one; + where the election is a tie. Zeros have no vote."""
    elected, total = spare
    if settings["elect"] == "sum":
        _summed(values, into)
    else:
        into.zero_()
        for value in values:
            into.add_(torch.sign(value, out=total))
    torch.copysign(into.new_ones(()), into, out=elected)
    into.zero_()
    total.zero_()
    for value, weight in zip(values, weights, strict=True):
        into.add_(value.mul_(elected).relu_())
        if settings["divide"] != "none":
            total.add_(value.sign_(), alpha=weight if settings["divide"] == "weights" else 1.0)
    if settings["divide"] == "count":
        into.div_(total.clamp_min_(1))
    elif settings["divide"] == "weights":
        into.div_(total.where(total != 0, 1.0))
    into.mul_(elected)
