"""What each adapter's ΔW loses before the merge, as functions of blocks of its rows, in place.

ΔW comes as a factor pair, those of layers of one shape together, and is only formed block by block: on a CPU each block
is in the cache while it is worked on, elsewhere a block is everything. Draws come from NumPy's SFC64, whose stream is
fixed for all versions and machines; a stream is named by seed, layer and adapter, so no result depends on the order of
layers, on which go together, the size of blocks or the device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lorahub.merge.alike import Pair
from lorahub.merge.methods import Method, Value
from lorahub.merge.selection import kth_magnitude, kth_magnitudes, kth_of

Sparsifier = Callable[[Tensor], None]
"""Takes the blocks of rows [layers, rows, n] of the matrices in order, and changes them in place."""

_BLOCK = 1 << 17
"""Numbers in a block on the CPU: a few of them fit into the second-level cache."""
_FEWEST_ROWS = 64
"""Rows in a block of a wide matrix: products of fewer are slow."""
_AT_ONCE = 1 << 22
"""Numbers among which a threshold is simply picked; to pass over more of them in blocks is quicker."""
_SAMPLED = 512
"""Rows and columns of the sample from which thresholds are bracketed."""
_THINNED = 7
"""Of that sample every seventh number is enough; seven, so that they fall into all its columns."""
_STEPS = 1 << 16
"""Chances are multiples of 1/65536: a draw is one 16-bit number."""


def block_rows(pair: Pair) -> int:
    """Rows in a block; on a CPU a multiple of four, so that the draws of a block fill whole 64-bit numbers."""
    up, down = pair
    if up.device.type != "cpu":
        return up.shape[1]
    return min(max(_BLOCK // down.shape[2] // 4 * 4, _FEWEST_ROWS), up.shape[1])


def blocks(pair: Pair) -> Iterator[Tensor]:
    """The matrices in blocks of rows, all in one buffer."""
    up, down = pair
    rows = block_rows(pair)
    buffer = up.new_empty(len(up), rows, down.shape[2])
    for part in torch.split(up, rows, dim=1):
        yield torch.bmm(part, down, out=buffer[:, : part.shape[1]])


def sparsifier(method: Method, settings: Mapping[str, Value], pair: Pair, streams: Sequence[str]) -> Sparsifier:
    """What the method does to the matrices of this factor pair before the merge; `streams` name the draws of each."""
    density = float(settings.get("density", 1))
    if density == 1 or method.sparsify == "none":
        return lambda block: None
    if method.sparsify == "trim":
        return _trim(pair, density)
    if method.sparsify == "breadcrumbs":
        return _breadcrumbs(pair, density, float(settings["gamma"]))
    draws = [
        np.random.SFC64(int.from_bytes(hashlib.sha256(f"{settings['seed']}/{stream}".encode()).digest()[:16]))
        for stream in streams
    ]
    if method.sparsify == "dare":
        return _dare(density, draws)
    return _della(density, float(settings["epsilon"]), draws)


def _kth(pair: Pair, k: int) -> list[float]:
    """The k-th largest magnitude of each matrix."""
    total = _numbers(pair)
    if pair[0].device.type != "cpu":
        (everything,) = blocks(pair)
        found: list[float] = kth_magnitudes(everything.abs_().flatten(1), k).cpu().tolist()
        return found
    each = [(up[None], down[None]) for up, down in zip(*pair, strict=True)]
    if total <= _AT_ONCE:
        return [kth_of(_magnitudes(one), k) for one in each]
    return [_kth_in_blocks(one, total, k) for one in each]


def _magnitudes(pair: Pair) -> Tensor:
    """Of one matrix, all of them, from the very products that are merged later: others might round differently."""
    up, down = pair
    whole = up.new_empty(1, up.shape[1], down.shape[2])
    for into, block in zip(torch.split(whole, block_rows(pair), dim=1), blocks(pair), strict=True):
        torch.abs(block, out=into)
    return whole.flatten()


def _kth_in_blocks(pair: Pair, total: int, k: int) -> float:
    (up,), (down,) = pair
    sample = (_spread(up) @ _spread(down.T).T).flatten()[::_THINNED]
    return kth_magnitude(lambda: (block.abs_() for block in blocks(pair)), total, k, sample)


def _numbers(pair: Pair) -> int:
    """How many numbers each of the matrices has."""
    return pair[0].shape[1] * pair[1].shape[2]


def _spread(rows: Tensor) -> Tensor:
    """Some of the rows, picked at random but always the same."""
    if len(rows) <= _SAMPLED:
        return rows
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:_SAMPLED]]


def _trim(pair: Pair, density: float) -> Sparsifier:
    """Keeps the int(density · numbers) largest magnitudes, and all that equal the smallest of them."""
    limits = [_below(least, pair[0].dtype) for least in _kth(pair, max(int(density * _numbers(pair)), 1))]
    return lambda block: _shrink(block, limits)


def _breadcrumbs(pair: Pair, density: float, gamma: float) -> Sparsifier:
    """Keeps int(density · numbers) magnitudes below the int(gamma · numbers) largest.

    Where density and gamma are more than everything, fewer outliers are cut off.
    """
    total = _numbers(pair)
    kept = max(int(density * total), 1)
    outliers = min(int(gamma * total), total - kept)
    largest = _kth(pair, outliers + 1) if outliers else []
    limits = [_below(least, pair[0].dtype) for least in _kth(pair, outliers + kept)]

    def apply(block: Tensor) -> None:
        for layer, limit in zip(block, largest, strict=False):
            layer.sub_(torch.nn.functional.hardshrink(layer, limit))  # x - x beyond `largest`, x - 0 elsewhere
        _shrink(block, limits)

    return apply


def _shrink(block: Tensor, limits: Sequence[float]) -> None:
    """Zero wherever the magnitude is at most the limit of the layer."""
    for layer, limit in zip(block, limits, strict=True):
        torch.ops.aten.hardshrink.out(layer, limit, out=layer)


def _below(least: float, dtype: torch.dtype) -> float:
    """The largest number of the dtype below `least`; -1 below 0, so that a limit there cuts nothing."""
    if least == 0:
        return -1.0
    return float(torch.nextafter(torch.tensor(least, dtype=dtype), torch.tensor(0.0, dtype=dtype)))


def _dare(density: float, draws: Sequence[np.random.SFC64]) -> Sparsifier:
    """Keeps each number with chance `density` and divides it by that chance: the mean over all draws is ΔW."""
    chance = max(round(density * _STEPS), 1)

    def apply(block: Tensor) -> None:
        kept = torch.from_numpy((_draw(draws, block[0].numel()) < chance).view(np.uint8)).to(block.device)
        block.mul_(kept.to(block.dtype).view_as(block)).mul_(_STEPS / chance)

    return apply


def _della(density: float, epsilon: float, draws: Sequence[np.random.SFC64]) -> Sparsifier:
    """Keeps each number with a chance from density - epsilon (least of its row) to density + epsilon (largest)."""

    def apply(block: Tensor) -> None:
        columns = block.shape[-1]
        order = block.abs().argsort(dim=-1, stable=True)
        steps = torch.linspace(density - epsilon, density + epsilon, columns, device=block.device, dtype=torch.float64)
        chances = (steps if columns > 1 else steps.fill_(density)).mul(_STEPS).round_().clamp_(1).to(block.dtype)
        chance = torch.empty_like(block).scatter_(-1, order, chances.expand_as(block))
        drawn = torch.from_numpy(_draw(draws, block[0].numel()).astype(np.int32)).to(block.device).view_as(block)
        block.mul_((drawn < chance).to(block.dtype)).mul_(_STEPS / chance)

    return apply


def _draw(draws: Sequence[np.random.SFC64], count: int) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    """The next 16-bit numbers of the streams, `count` of each, one stream after the other."""
    drawn = [each.random_raw(-(-count // 4)).astype("<u8", copy=False).view("<u2")[:count] for each in draws]
    return drawn[0] if len(drawn) == 1 else np.concatenate(drawn)
