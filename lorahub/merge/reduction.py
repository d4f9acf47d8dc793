"""The leading singular triplets of dense ΔW, by a randomised SVD that starts from the adapters' own row space.

Halko, Martinsson and Tropp (arXiv 0909.4061), algorithm 4.4: Q = orth(T (T^T T)^q Ω), then the SVD of the thin Q^T T. With
Ω the rows of the adapters' down factors the start is warm. The error to T is known exactly, not estimated: what Q^T T does
not hold is ‖T‖² - Σ σ². Deterministic: what must be random comes from a fixed seed.

Targets of one shape go together, [layers, m, n]; one that must be followed in more directions goes on alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorahub.algebra.batched import Choose, Factored
from lorahub.errors import VerificationError

_NARROWEST, _WIDEST = 32, 256
"""Directions that are followed, at the start: as many as the adapters have, within these bounds."""
_MARGIN = 1.5
"""Directions followed for each one kept: the last of them are inaccurate."""
_ROWS = 256
"""Rows that are subtracted at a time where an error is summed up."""
_NOISE = {torch.float32: 1e-6, torch.float64: 1e-13}
"""Singular values below this share of the largest are rounding of the dense matrix."""
_CANCELLED = 1e-2
"""Below this share of ‖T‖², the difference of squares has lost too many digits: the error is summed up entry by entry."""


@dataclass(frozen=True, eq=False)
class Reduced:
    """Singular triplets of a target, its Frobenius norm, and the distance from the target of the triplets kept."""

    found: Factored
    norm: float
    error: float


def reduce(
    targets: Tensor, start: Tensor, chooses: Sequence[Choose], names: Sequence[str], *, power: int
) -> list[Reduced]:
    """The leading singular triplets of `targets` [layers, m, n], from `start` [layers, k, n], rows near their row spaces.

    chooses: for each, from singular values (float64, descending, on the CPU) to how many are wanted. They are those found
    and, for those not followed, their mean square: so their squares sum to ‖target‖².
    power: how often the start is multiplied by T^T T on its way; the flatter the tail of the spectrum, the more it takes.
    float64 targets, and those that are hardly larger than what must be followed, get the exact SVD.
    Raises VerificationError that names the layer, for NaN or Inf.
    """
    norms = _squares(targets).sqrt().cpu().tolist()
    for name, norm in zip(names, norms, strict=True):
        if not math.isfinite(norm):
            raise VerificationError(f"{name}: the weights hold NaN or Inf")
    return _reduced(targets, norms, start, min(max(start.shape[1], _NARROWEST), _WIDEST), chooses, power)


def _reduced(
    targets: Tensor, norms: Sequence[float], start: Tensor, width: int, chooses: Sequence[Choose], power: int
) -> list[Reduced]:
    if targets.dtype == torch.float64 or 2 * width >= min(targets.shape[1:]):
        return _exact(targets, norms, chooses)
    left, right = _follow(targets, _filled(start, width), power)
    wide = right.double()
    squares, vectors = torch.linalg.eigh(wide @ wide.mT)
    squares, vectors = squares.flip(1).clamp_min(0), vectors.flip(2)
    sigma = _spread_out(squares.cpu(), norms, min(targets.shape[1:]))
    ranks = [_rank(choose, each, each[:width], targets.dtype) for choose, each in zip(chooses, sigma, strict=True)]
    enough = [rank * _MARGIN <= width for rank in ranks]
    most = max((rank for rank, held in zip(ranks, enough, strict=True) if held), default=0)
    balance = squares[:, None, :most] ** 0.25
    ups = left @ (vectors[..., :most] * balance).to(left.dtype)
    downs = (vectors[..., :most] / balance).mT.to(right.dtype) @ right
    return [
        _measured(targets[i], norms[i], Factored(sigma[i], ups[i, :, :rank], downs[i, :rank]))
        if enough[i]
        else _reduced(targets[i, None], norms[i : i + 1], right[i, None], 2 * width, chooses[i : i + 1], power)[0]
        for i, rank in enumerate(ranks)
    ]


def _exact(targets: Tensor, norms: Sequence[float], chooses: Sequence[Choose]) -> list[Reduced]:
    left, values, right = torch.linalg.svd(targets, full_matrices=False)
    sigma = values.cpu().double()
    ranks = [_rank(choose, each, each, targets.dtype) for choose, each in zip(chooses, sigma, strict=True)]
    balance = values[:, : max(ranks)].sqrt()
    ups, downs = left[..., : max(ranks)] * balance[:, None], balance[..., None] * right[:, : max(ranks)]
    return [
        _measured(targets[i], norms[i], Factored(sigma[i], ups[i, :, :rank], downs[i, :rank]))
        for i, rank in enumerate(ranks)
    ]


def _squares(matrices: Tensor) -> Tensor:
    """‖matrix‖² of each of [layers, m, n], float64 [layers]."""
    if matrices.device.type != "cpu":
        norms: Tensor = torch.linalg.vector_norm(matrices.flatten(1), dim=1, dtype=torch.float64)
        return norms.square()
    chunks = ([torch.dot(chunk, chunk) for chunk in torch.split(matrix.reshape(-1), 1 << 16)] for matrix in matrices)
    return torch.stack([torch.stack(each).sum(dtype=torch.float64) for each in chunks])


def _rank(choose: Choose, sigma: Tensor, followed: Tensor, dtype: torch.dtype) -> int:
    """What is chosen of all singular values, but no rounding."""
    return min(choose(sigma), int((followed > _NOISE[dtype] * followed[:1]).sum()))


def _spread_out(squares: Tensor, norms: Sequence[float], count: int) -> Tensor:
    """Singular values [layers, count]: those followed, from their squares, and the mean square of the others."""
    others = count - squares.shape[1]
    rest = torch.tensor(norms, dtype=torch.float64).square() - squares.sum(1)
    return torch.cat([squares, (rest.clamp_min(0) / others)[:, None].expand(-1, others)], 1).sqrt()


def _filled(start: Tensor, width: int) -> Tensor:
    """`width` rows that span the rows of `start`, or mixtures of them when they are too many; random ones added."""
    random = torch.Generator().manual_seed(0)
    rows, columns = start.shape[1:]
    if rows > width:
        mix = torch.randn(width, rows, generator=random, dtype=torch.float64)
        return mix.to(start.device, start.dtype) @ start
    more = torch.randn(width - rows, columns, generator=random, dtype=torch.float64).to(start.device, start.dtype)
    scale = torch.linalg.vector_norm(start, dim=(1, 2), keepdim=True) / math.sqrt(max(rows * columns, 1))
    return torch.cat([start, more * scale.where(scale > 0, 1.0)], 1)


def _follow(targets: Tensor, start: Tensor, power: int) -> tuple[Tensor, Tensor]:
    """(Q [layers, m, k] with orthonormal columns, Q^T target [layers, k, n])."""
    q = _orthonormal(targets @ start.mT)
    for _ in range(power):
        q = _orthonormal(targets @ _orthonormal(targets.mT @ q))
    return q, q.mT @ targets


def _orthonormal(columns: Tensor) -> Tensor:
    """A basis of the columns: Cholesky of their Gram matrix in float64, Householder where that cannot tell them apart."""
    wide = columns.double()
    root, failed = torch.linalg.cholesky_ex(wide.mT @ wide)
    diagonal = root.diagonal(dim1=1, dim2=2)
    apart = ((failed == 0) & (diagonal.amin(1) > 1e-5 * diagonal.amax(1))).cpu().tolist()
    one = torch.eye(root.shape[1], dtype=root.dtype, device=root.device)
    basis: Tensor = columns @ torch.linalg.solve_triangular(root, one, upper=False).mT.to(columns.dtype)
    for i, fine in enumerate(apart):
        if not fine:
            basis[i] = torch.linalg.qr(columns[i]).Q
    return basis


def _measured(target: Tensor, norm: float, found: Factored) -> Reduced:
    squared = norm**2 - float(found.sigma[: found.up.shape[1]].square().sum())
    if squared < _CANCELLED * norm**2:
        parts = zip(torch.split(target, _ROWS), torch.split(found.up, _ROWS), strict=True)
        squared = float(sum(_squares((part - rows @ found.down)[None]) for part, rows in parts))
    return Reduced(found, norm, math.sqrt(max(squared, 0.0)))
