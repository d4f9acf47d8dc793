"""The k-th largest magnitude of a matrix, exact.

On the CPU a large matrix is only ever seen in blocks of rows, and passes over it are few. A sample says between which two
values the answer almost surely lies. One pass counts what is above the bracket and keeps what is inside; when the counts
say that the answer is not inside, the bracket is opened on that side and the pass repeated. On a device a pass costs
little and waiting for its outcome much: bisection waits for none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

Blocks = Callable[[], Iterator[Tensor]]
"""Gives the magnitudes of the matrix, block by block, each time the same; a block may be overwritten by the next."""

_DEVIATIONS = 6.0
"""Half the width of the bracket, in standard deviations of a quantile of as many independent numbers: a sample of whole
rows and columns tells less than they would."""


def kth_magnitude(blocks: Blocks, total: int, k: int, sample: Tensor) -> float:
    """The k-th largest (k from 1) of all `total` magnitudes; `sample` holds some numbers like them."""
    low, high = _bracket(sample.flatten().abs(), k / total)
    while True:
        above, inside = _count(blocks, low, high)
        rank = k - above
        if rank < 1:
            high = math.inf
        elif rank > len(inside):
            low = -math.inf
        else:
            return kth_of(inside, rank)


def kth_magnitudes(magnitudes: Tensor, k: int) -> Tensor:
    """The k-th largest (k from 1) of each row of magnitudes [rows, numbers], all at once: [rows].

    Bit by bit from the highest: read as whole numbers, the bits of floats that are not negative have the same order.
    """
    kind, width = (torch.int64, 63) if magnitudes.dtype == torch.float64 else (torch.int32, 31)
    numbers = magnitudes.view(kind)
    found = numbers.new_zeros(len(numbers), 1)
    for bit in reversed(range(width)):
        tried = found | (1 << bit)
        found = tried.where((numbers >= tried).sum(1, keepdim=True) >= k, found)
    return found.view(magnitudes.dtype)[:, 0]


def _bracket(sample: Tensor, share: float) -> tuple[float, float]:
    """Magnitudes between which the one lies that `share` of all exceed, as far as the sample tells."""
    spread = _DEVIATIONS * math.sqrt(share * (1 - share) / len(sample)) + 1 / len(sample)
    first, last = math.floor((share - spread) * len(sample)), math.ceil((share + spread) * len(sample))
    return kth_of(sample, last) if last <= len(sample) else -math.inf, kth_of(sample, first) if first > 0 else math.inf


def kth_of(values: Tensor, k: int) -> float:
    """The k-th largest (k from 1) of values, which it reorders. NumPy picks several times faster than torch does."""
    array, place = values.numpy(), len(values) - k
    array.partition(place)
    return float(array[place])


def _count(blocks: Blocks, low: float, high: float) -> tuple[int, Tensor]:
    """How many magnitudes exceed `high`, and those from `low` to `high`."""
    above, inside = 0, []
    for block in blocks():
        values = block.numpy().reshape(-1)
        beyond, wanted = values > high, values >= low
        above += int(np.count_nonzero(beyond))
        inside.append(torch.from_numpy(values[np.logical_xor(wanted, beyond, out=wanted)]))
    return above, torch.cat(inside)
