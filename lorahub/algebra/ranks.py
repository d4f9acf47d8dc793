"""Rank rules: from singular values to how many of them to keep. Pure functions of spectra; nothing here touches factors.

A rule is a value that names itself (`fixed(64)`), so that it can be written into a file's provenance and replayed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lorahub.errors import UsageError


@dataclass(frozen=True)
class RankRule:
    """`text` names the rule; exactly one of the two functions decides.

    per_layer: singular values of one layer, float64, descending -> rank.
    overall: {layer: singular values}, {layer: (out, in)} -> {layer: rank}, when layers compete.
    """

    text: str
    per_layer: Callable[[Tensor], int] | None = None
    overall: Callable[[Mapping[str, Tensor], Mapping[str, tuple[int, int]]], dict[str, int]] | None = None

    def __str__(self) -> str:
        return self.text


def fixed(rank: int) -> RankRule:
    """Keep the `rank` largest singular values of every layer: the best approximation of that rank (Eckart-Young)."""
    if rank < 1:
        raise UsageError(f"a rank must be at least 1, got {rank}")
    return RankRule(f"fixed({rank})", per_layer=lambda sigma: min(rank, len(sigma)))


def energy(share: float) -> RankRule:
    """Keep the fewest singular values whose squares sum to at least `share` (0 to 1) of a layer's total."""
    if not 0 < share <= 1:
        raise UsageError(f"energy is a share between 0 and 1, got {share}")
    return RankRule(f"energy({share})", per_layer=lambda sigma: smallest_with_tail(sigma, 1 - share))


def relative(error: float) -> RankRule:
    """Keep the fewest singular values that leave a relative Frobenius error of at most `error` in every layer."""
    if not 0 <= error < 1:
        raise UsageError(f"a relative error lies between 0 and 1, got {error}")
    return RankRule(f"relative({error})", per_layer=lambda sigma: smallest_with_tail(sigma, error**2))


def budget(
    size: int,
    *,
    bytes_per_element: int = 2,
    overhead: int = 700,
    elements: Callable[[str, tuple[int, int]], int] = lambda name, shape: sum(shape),
) -> RankRule:
    """Spend at most `size` bytes over all layers, buying first the singular values with the most σ² per byte.

    elements: (layer, (out, in)) -> numbers stored for one unit of rank, out + in unless a format fuses layers.
    overhead: bytes that a layer costs once it is kept at all, for its entries in the header.
    Since σ only falls within a layer, the greedy choice is optimal up to the last term that does not fit.
    """
    if size < 1:
        raise UsageError(f"a size must be positive, got {size} bytes")

    def allot(spectra: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]]) -> dict[str, int]:
        prices = {name: elements(name, shape) * bytes_per_element for name, shape in shapes.items()}
        ranks = dict.fromkeys(spectra, 0)
        left = float(size)
        queue = [(-_worth(spectra[name], 0) / prices[name], name) for name in spectra if _worth(spectra[name], 0)]
        heapq.heapify(queue)
        while queue:
            _, name = heapq.heappop(queue)
            price = prices[name] + (overhead if ranks[name] == 0 else 0)
            if price > left:
                continue
            left -= price
            ranks[name] += 1
            if worth := _worth(spectra[name], ranks[name]):
                heapq.heappush(queue, (-worth / prices[name], name))
        return ranks

    return RankRule(f"budget({size})", overall=allot)


def _worth(sigma: Tensor, index: int) -> float:
    """The squared error that keeping one more singular value saves."""
    return float(sigma[index]) ** 2 if index < len(sigma) else 0.0


def smallest_with_tail(sigma: Tensor, allowed: float) -> int:
    """The least r for which Σ_{j>r} σ² <= allowed · Σ σ²."""
    squares = sigma.double().square()
    tails = torch.flip(torch.cumsum(torch.flip(squares, [0]), 0), [0])  # tails[r] = what keeping r leaves out
    within = torch.nonzero(tails <= allowed * squares.sum() * (1 + 1e-12))
    return int(within[0]) if len(within) else len(sigma)
