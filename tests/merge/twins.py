"""The merge methods as their papers and mergekit define them, on dense float64 matrices: plain, slow, and independent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorahub.algebra import Adapter, LowRank
from tests.algebra.making import adapter


def of_matrix(matrix: Tensor) -> LowRank:
    """A layer that is exactly this matrix."""
    return LowRank.of(torch.eye(len(matrix), dtype=matrix.dtype), matrix)


def holding(matrix: Tensor, name: str = "style") -> Adapter:
    """An adapter with the one layer `unet.layer`."""
    return adapter(name, layer=of_matrix(matrix))


def trim(x: Tensor, density: float) -> Tensor:
    kept = x.abs().flatten().argsort(descending=True)[: int(density * x.numel())]
    mask = torch.zeros(x.numel(), dtype=x.dtype)
    mask[kept] = 1
    return x * mask.view_as(x)


def breadcrumbs(x: Tensor, density: float, gamma: float) -> Tensor:
    order = x.abs().flatten().argsort()
    top = int(gamma * x.numel())
    bottom = x.numel() - int(density * x.numel()) - top
    if bottom < 0:
        top, bottom = top + bottom, 0
    mask = torch.zeros(x.numel(), dtype=x.dtype)
    mask[order[bottom : x.numel() - top]] = 1
    return x * mask.view_as(x)


def elected(values: Sequence[Tensor], weights: Sequence[float], elect: str = "sum", divide: str = "count") -> Tensor:
    """TIES steps two and three; the values are weighted."""
    stack = torch.stack(list(values))
    majority = (stack if elect == "sum" else stack.sign()).sum(0)
    sign = torch.where(majority >= 0, 1.0, -1.0).double()
    agree = (stack.sign() == sign).double()
    shares = torch.tensor(weights, dtype=torch.float64).view(-1, 1, 1) if divide == "weights" else torch.ones(1, 1, 1)
    divisor = (agree * shares).sum(0)
    divisor = torch.ones_like(divisor) if divide == "none" else torch.where(divisor == 0, 1.0, divisor)
    return (stack * agree).sum(0) / divisor


def knots_basis(matrices: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """U, and the adapters' shares Σ V_i."""
    u, sigma, vh = torch.linalg.svd(torch.cat(list(matrices), 1), full_matrices=False)
    known = sigma > 1e-9 * sigma[0]
    return u[:, known], list((sigma[known, None] * vh[known]).split(matrices[0].shape[1], 1))


def tsv(matrices: Sequence[Tensor], ranks: Sequence[int]) -> Tensor:
    parts = [torch.linalg.svd(matrix, full_matrices=False) for matrix in matrices]
    u = torch.cat([part.U[:, :rank] for part, rank in zip(parts, ranks, strict=True)], 1)
    v = torch.cat([part.Vh[:rank] for part, rank in zip(parts, ranks, strict=True)])
    sigma = torch.cat([part.S[:rank] for part, rank in zip(parts, ranks, strict=True)])
    return _nearest(u) @ torch.diag(sigma) @ _nearest(v)


def _nearest(x: Tensor) -> Tensor:
    """The matrix with orthonormal columns (or rows) nearest to x."""
    p, _, q = torch.linalg.svd(x, full_matrices=False)
    return p @ q


def iso_c(matrices: Sequence[Tensor], rank: int) -> Tensor:
    u, sigma, vh = torch.linalg.svd(torch.stack(list(matrices)).sum(0), full_matrices=False)
    return sigma[:rank].mean() * u[:, :rank] @ vh[:rank]


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    angle = torch.acos((a * b).sum() / (a.norm() * b.norm()))
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
