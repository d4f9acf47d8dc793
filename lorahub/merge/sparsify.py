"""What each adapter's ΔW loses before the merge, as functions of blocks of its rows, in place.

ΔW comes as a factor pair and is only formed block by block, each block in the cache while it is worked on. Draws come from
NumPy's SFC64, whose stream is fixed for all versions and machines; a stream is named by seed, layer and adapter, so no
result depends on the order of layers, the size of blocks or the device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from lorahub.merge.methods import Method, Value
from lorahub.merge.selection import kth_magnitude

Pair = tuple[Tensor, Tensor]
"""(up [m, r], down [r, n]) of a matrix up @ down; weight and scale are in `up`."""
Sparsifier = Callable[[Tensor], None]
"""Takes the blocks of rows of one matrix in order, and changes them in place."""

_BLOCK = 1 << 17
"""Numbers in a block on the CPU: a few of them fit into the second-level cache."""
_LARGE_BLOCK = 1 << 24
"""The same on other devices, where starting a small operation costs more than it does: 64 MB."""
_FEWEST_ROWS = 64
"""Rows in a block of a wide matrix: products of fewer are slow."""
_SAMPLED = 512
"""Rows and columns of the sample from which thresholds are bracketed."""
_THINNED = 7
"""Of that sample every seventh number is enough; seven, so that they fall into all its columns."""
_STEPS = 1 << 16
"""Chances are multiples of 1/65536: a draw is one 16-bit number."""


def block_rows(pair: Pair) -> int:
    """Rows in a block; a multiple of four, so that the draws of a block fill whole 64-bit numbers."""
    up, down = pair
    numbers = _BLOCK if up.device.type == "cpu" else _LARGE_BLOCK
    return min(max(numbers // down.shape[1] // 4 * 4, _FEWEST_ROWS), up.shape[0])


def blocks(pair: Pair) -> Iterator[Tensor]:
    """The matrix in blocks of rows, all in one buffer."""
    up, down = pair
    rows = block_rows(pair)
    buffer = up.new_empty(rows, down.shape[1])
    for part in torch.split(up, rows):
        yield torch.mm(part, down, out=buffer[: len(part)])


def sparsifier(method: Method, settings: Mapping[str, Value], pair: Pair, stream: str) -> Sparsifier:
    """What the method does to the matrix of this factor pair before the merge; `stream` names the draws."""
    density = float(settings.get("density", 1))
    if density == 1 or method.sparsify == "none":
        return lambda block: None
    if method.sparsify == "trim":
        return _trim(pair, density)
    if method.sparsify == "breadcrumbs":
        return _breadcrumbs(pair, density, float(settings["gamma"]))
    draws = np.random.SFC64(int.from_bytes(hashlib.sha256(f"{settings['seed']}/{stream}".encode()).digest()[:16]))
    if method.sparsify == "dare":
        return _dare(density, draws)
    return _della(density, float(settings["epsilon"]), draws)


def _kth(pair: Pair, k: int) -> float:
    """The k-th largest magnitude of the matrix."""
    up, down = pair
    total = up.shape[0] * down.shape[1]
    sample = (_spread(up) @ _spread(down.T).T).flatten()[::_THINNED]
    return kth_magnitude(lambda: (block.abs_() for block in blocks(pair)), total, k, sample)


def _spread(rows: Tensor) -> Tensor:
    """Some of the rows, picked at random but always the same."""
    if len(rows) <= _SAMPLED:
        return rows
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:_SAMPLED]
    return rows[chosen.to(rows.device)]


def _trim(pair: Pair, density: float) -> Sparsifier:
    """Keeps the int(density · numbers) largest magnitudes, and all that equal the smallest of them."""
    limit = _below(_kth(pair, max(int(density * pair[0].shape[0] * pair[1].shape[1]), 1)), pair[0].dtype)
    return lambda block: _shrink(block, limit)


def _breadcrumbs(pair: Pair, density: float, gamma: float) -> Sparsifier:
    """Keeps int(density · numbers) magnitudes below the int(gamma · numbers) largest.

    Where density and gamma are more than everything, fewer outliers are cut off.
    """
    total = pair[0].shape[0] * pair[1].shape[1]
    kept = max(int(density * total), 1)
    outliers = min(int(gamma * total), total - kept)
    largest = _kth(pair, outliers + 1) if outliers else math.inf
    trim = _below(_kth(pair, outliers + kept), pair[0].dtype)

    def apply(block: Tensor) -> None:
        if largest < math.inf:
            block.sub_(torch.nn.functional.hardshrink(block, largest))  # x - x beyond `largest`, x - 0 elsewhere
        _shrink(block, trim)

    return apply


def _shrink(block: Tensor, limit: float) -> None:
    """Zero wherever the magnitude is at most `limit`."""
    torch.ops.aten.hardshrink.out(block, limit, out=block)


def _below(least: float, dtype: torch.dtype) -> float:
    """The largest number of the dtype below `least`; -1 below 0, so that a limit there cuts nothing."""
    if least == 0:
        return -1.0
    return float(torch.nextafter(torch.tensor(least, dtype=dtype), torch.tensor(0.0, dtype=dtype)))


def _dare(density: float, draws: np.random.SFC64) -> Sparsifier:
    """Keeps each number with chance `density` and divides it by that chance: the mean over all draws is ΔW."""
    chance = max(round(density * _STEPS), 1)

    def apply(block: Tensor) -> None:
        kept = torch.from_numpy((_draw(draws, block.numel()) < chance).view(np.uint8)).to(block.device)
        block.mul_(kept.to(block.dtype).view_as(block)).mul_(_STEPS / chance)

    return apply


def _della(density: float, epsilon: float, draws: np.random.SFC64) -> Sparsifier:
    """Keeps each number with a chance from density - epsilon (least of its row) to density + epsilon (largest)."""

    def apply(block: Tensor) -> None:
        columns = block.shape[1]
        order = block.abs().argsort(dim=1, stable=True)
        steps = torch.linspace(density - epsilon, density + epsilon, columns, device=block.device, dtype=torch.float64)
        chances = (steps if columns > 1 else steps.fill_(density)).mul(_STEPS).round_().clamp_(1).to(block.dtype)
        chance = torch.empty_like(block).scatter_(1, order, chances.expand_as(block))
        drawn = torch.from_numpy(_draw(draws, block.numel()).astype(np.int32)).to(block.device).view_as(block)
        block.mul_((drawn < chance).to(block.dtype)).mul_(_STEPS / chance)

    return apply


def _draw(draws: np.random.SFC64, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    """The next 16-bit numbers of the stream."""
    return draws.random_raw(-(-count // 4)).astype("<u8", copy=False).view("<u2")[:count]
