"""Layers of one shape and rank decomposed together, for devices on which starting a small operation costs more than it does.

The rule: the steps and the tests of trust are those of `decompose`, and a layer that fails them goes on alone. Products
are in float64 throughout: beside the eigenvalues they cost a GPU little, and its float32 products may be rounded to ten
bits (TF32). A batch takes at most `BATCH_BYTES`, or one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorahub.algebra.decompose import decompose, eigen, mixes, naming, triplets, trusted
from lorahub.algebra.lowrank import LowRank

BATCH_BYTES = 2**29
"""Memory of the device for one batch, the results included."""

Choose = Callable[[Tensor], int]


@dataclass(frozen=True, eq=False)
class Factored:
    """All singular values (float64, descending), and ΔW_rank = up @ down: up [out, rank], down [rank, in], balanced."""

    sigma: Tensor
    up: Tensor
    down: Tensor


def alone(layer: LowRank, choose: Choose, *, exact: bool, device: str = "cpu") -> Factored:
    """The decomposition of one layer of any rank; raises what `decompose` raises."""
    if not layer.rank:
        return Factored(torch.zeros(0, dtype=torch.float64), *layer.factors())
    found = decompose(layer, choose, exact=exact, device=device)
    return Factored(found.sigma.cpu(), *found.factors())


def batches(
    names: Iterable[str], kind: Callable[[str], Hashable], size: Callable[[str], int], limit: int = BATCH_BYTES
) -> Iterator[list[str]]:
    """The names in groups of one kind, none larger than `limit` bytes unless it is a single name."""
    alike: dict[Hashable, list[str]] = {}
    for name in names:
        alike.setdefault(kind(name), []).append(name)
    for group in alike.values():
        count = max(limit // max(size(group[0]), 1), 1)
        for first in range(0, len(group), count):
            yield group[first : first + count]


def decompose_all(
    layers: Mapping[str, LowRank], chooser: Callable[[str], Choose], device: str, *, limit: int = BATCH_BYTES
) -> Iterator[tuple[str, Factored]]:
    """(name, decomposition) of every layer, those of one shape and rank after each other.

    chooser: layer name -> the function from its singular values (float64, descending, on the CPU) to how many are kept.
    Raises VerificationError that names the layer, for NaN or Inf.
    """
    for names in batches(layers, lambda name: _kind(layers[name]), lambda name: _bytes(layers[name]), limit):
        group, chooses = [layers[name] for name in names], [chooser(name) for name in names]
        together = 0 < group[0].rank < min(group[0].matrix_shape)
        found = _from_grams(group, chooses, device) if together else [None] * len(group)
        for name, layer, choose, result in zip(names, group, chooses, found, strict=True):
            with naming(name):
                result = result or alone(layer, choose, exact=True, device=device)
            yield name, result


def _kind(layer: LowRank) -> Hashable:
    return layer.matrix_shape, layer.rank


def _bytes(layer: LowRank) -> int:
    """Of one layer in a batch: its factors alone, stacked, and those that come out; some small matrices."""
    return 8 * (3 * layer.rank * sum(layer.matrix_shape) + 12 * layer.rank**2)


def _from_grams(layers: Sequence[LowRank], chooses: Sequence[Choose], device: str) -> list[Factored | None]:
    """None for those whose Gram matrices do not carry the wanted singular vectors."""
    parts = [(*layer.unscaled(torch.float64, device), layer.scales(device)) for layer in layers]
    up, down, scales = (torch.stack(each) for each in zip(*parts, strict=True))
    del parts
    gram_up = up.mT @ up * scales[:, :, None] * scales[:, None, :]
    gram_down = down @ down.mT
    root, failed = torch.linalg.cholesky_ex(gram_up)
    good = (failed == 0) & torch.isfinite((gram_up + gram_down).sum((1, 2)))
    one = torch.eye(up.shape[2], dtype=up.dtype, device=up.device)  # what is no number would stop the whole batch
    gram_up, gram_down, root = (torch.where(good[:, None, None], each, one) for each in (gram_up, gram_down, root))
    squares, vectors = eigen(gram_down, root)
    sigma = squares.sqrt()
    known = sigma.cpu()
    ranks = [choose(each) for choose, each in zip(chooses, known, strict=True)]
    most = max(ranks)
    rows, columns, doubt, overall = triplets(gram_up, gram_down, root, squares, vectors[..., :most], up.dtype)
    up_mix, down_mix = mixes(rows, columns, scales, sigma, most)
    ups, downs = up @ up_mix, down_mix @ down
    good, squares, doubt, overall = (each.cpu() for each in (good, squares, doubt, overall))
    return [
        Factored(known[i], ups[i, :, :rank], downs[i, :rank])
        if good[i] and trusted(squares[i], doubt[i], overall[i], rank, up.dtype)
        else None
        for i, rank in enumerate(ranks)
    ]
