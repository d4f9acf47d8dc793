"""The leading singular triplets of a dense ΔW, by a randomised SVD that starts from the adapters' own row space.

Halko, Martinsson and Tropp (arXiv 0909.4061), algorithm 4.4: Q = orth(T (T^T T)^q Ω), then the SVD of the thin Q^T T. With
Ω the rows of the adapters' down factors the start is warm. The error to T is known exactly, not estimated: what Q^T T does
not hold is ‖T‖² - Σ σ². Deterministic: what must be random comes from a fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lorahub.algebra.decompose import Decomposition
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

    found: Decomposition
    norm: float
    error: float


def reduce(target: Tensor, start: Tensor, choose: Callable[[Tensor], int], *, power: int) -> Reduced:
    """The `choose(singular values)` leading triplets of `target` [m, n], from `start` [k, n], rows near its row space.

    power: how often the start is multiplied by T^T T on its way; the flatter the tail of the spectrum, the more it takes.
    choose sees singular values found and, for those not followed, their mean square: so their squares sum to ‖target‖².
    float64 targets, and those that are hardly larger than what must be followed, get the exact SVD.
    Raises VerificationError for NaN or Inf.
    """
    norm = math.sqrt(_squared(target))
    if not math.isfinite(norm):
        raise VerificationError("the weights hold NaN or Inf")
    smaller = min(target.shape)
    width = min(max(len(start), _NARROWEST), _WIDEST)
    while target.dtype != torch.float64 and 2 * width < smaller:
        left, right = _follow(target, _filled(start, width), power)
        squares, vectors = torch.linalg.eigh(right.double() @ right.double().T)
        squares, vectors = squares.flip(0).clamp_min(0), vectors.flip(1)
        rest = max(norm**2 - float(squares.sum()), 0.0)
        sigma = torch.cat([squares, squares.new_full((smaller - width,), rest / (smaller - width))]).sqrt()
        rank = min(choose(sigma), _content(squares.sqrt(), target.dtype))
        if rank * _MARGIN <= width:
            balance = squares[:rank].sqrt().sqrt()
            up_mix, down_mix = vectors[:, :rank] * balance, (vectors[:, :rank] / balance).T
            return _measured(target, norm, Decomposition(sigma, rank, left, up_mix, down_mix, right))
        start, width = right, 2 * width
    u, values, vh = torch.linalg.svd(target, full_matrices=False)
    sigma = values.double()
    rank = min(choose(sigma), _content(sigma, target.dtype))
    balance = torch.diag(sigma[:rank].sqrt())
    return _measured(target, norm, Decomposition(sigma, rank, u[:, :rank], balance, balance, vh[:rank]))


def _squared(matrix: Tensor) -> float:
    """‖matrix‖²: products in its dtype, sums over chunks in float64."""
    return sum(float(torch.dot(chunk, chunk)) for chunk in torch.split(matrix.reshape(-1), 1 << 16))


def _content(sigma: Tensor, dtype: torch.dtype) -> int:
    return int((sigma > _NOISE[dtype] * sigma[:1]).sum())


def _filled(start: Tensor, width: int) -> Tensor:
    """`width` rows that span the rows of `start`, or mixtures of them when they are too many; random ones added."""
    random = torch.Generator().manual_seed(0)
    if len(start) > width:
        mix = torch.randn(width, len(start), generator=random, dtype=torch.float64)
        return mix.to(start.device, start.dtype) @ start
    more = torch.randn(width - len(start), start.shape[1], generator=random, dtype=torch.float64)
    scale = float(torch.linalg.vector_norm(start)) / math.sqrt(max(start.numel(), 1)) or 1.0
    return torch.cat([start, more.to(start.device, start.dtype) * scale])


def _follow(target: Tensor, start: Tensor, power: int) -> tuple[Tensor, Tensor]:
    """(Q [m, k] with orthonormal columns, Q^T target [k, n])."""
    q = _orthonormal(target @ start.T)
    for _ in range(power):
        q = _orthonormal(target @ _orthonormal(target.T @ q))
    return q, q.T @ target


def _orthonormal(columns: Tensor) -> Tensor:
    """A basis of the columns: Cholesky of their Gram matrix in float64, Householder where that cannot tell them apart."""
    wide = columns.double()
    root, failed = torch.linalg.cholesky_ex(wide.T @ wide)
    diagonal = root.diagonal()
    if int(failed) or not bool(diagonal.min() > 1e-5 * diagonal.max()):
        basis: Tensor = torch.linalg.qr(columns).Q
        return basis
    one = torch.eye(len(root), dtype=root.dtype, device=root.device)
    inverse: Tensor = torch.linalg.solve_triangular(root, one, upper=False)
    return columns @ inverse.T.to(columns.dtype)


def _measured(target: Tensor, norm: float, found: Decomposition) -> Reduced:
    squared = norm**2 - float(found.sigma[: found.rank].square().sum())
    if squared < _CANCELLED * norm**2:
        up, down = found.factors()
        parts = zip(torch.split(target, _ROWS), torch.split(up, _ROWS), strict=True)
        squared = sum(_squared(part - rows @ down) for part, rows in parts)
    return Reduced(found, norm, math.sqrt(squared))
