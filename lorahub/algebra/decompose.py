"""The singular value decomposition of a layer from its factors, without the dense matrix.

With ΔW = B s A (B [out, R], A [R, in], s the scales), G_B = B^T B and G_A = A A^T:

    X X^T = s G_B s                     Cholesky, R x R
    X^T G_A X = U S² U^T                eigh, R x R; S are the singular values of ΔW
    down = S^-1/2 U^T X^T A,   up = B s G_A X U S^-3/2

so only thin products touch the long dimensions. `up @ down` is ΔW projected on the leading right singular vectors
V^T = S^-1 U^T X^T A. How wrong these and the singular values can be is known from the small matrices (`_doubt`). Three
routes, each taken when the one before it leaves too much doubt: Gram matrices from float32 products, from float64
products, and Householder QR of the factors in float64, which squares nothing and bears any input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lorahub.algebra.geometry import product
from lorahub.algebra.lowrank import LowRank
from lorahub.errors import VerificationError

_TOLERATED_DRIFT = 1e-4
"""Departure from orthonormality; measured, the error rises above the optimum by 1e-2 of its square: 1e-10."""
_TOLERATED_TAIL = 1e-3
"""Doubt about what is left out, as a share of it; measured, the reported error is then right to five digits."""
_NOISE = {torch.float32: 2e-8, torch.float64: 4e-16}
"""Relative error of a Gram matrix: unit roundoff, lessened by the chunked float64 sums."""
_NEGLIGIBLE = 1e-14
"""Singular values below this share of the factors' own size are rounding noise of float64, not content."""


@dataclass(frozen=True, eq=False)
class Decomposition:
    """All singular values (float64, descending), and what builds the factors of the `rank` largest.

    ΔW_rank = (left @ up_mix) @ (down_mix @ right); left [out, k], up_mix [k, rank], down_mix [rank, k], right [k, in].
    """

    sigma: Tensor
    rank: int
    left: Tensor
    up_mix: Tensor
    down_mix: Tensor
    right: Tensor

    def factors(self) -> tuple[Tensor, Tensor]:
        """(up [out, rank], down [rank, in]); each carries the square root of the singular values."""
        return self.left @ self.up_mix.to(self.left.dtype), self.down_mix.to(self.right.dtype) @ self.right


def keep_all(sigma: Tensor) -> int:
    return len(sigma)


def decompose(
    layer: LowRank, choose: Callable[[Tensor], int] = keep_all, *, exact: bool = False, device: str = "cpu"
) -> Decomposition:
    """The singular value decomposition of a layer; the first `choose(singular values)` triplets are accurate.

    choose: from all singular values (float64, descending) to how many are wanted; fewer is often much cheaper.
    exact: compute in float64 throughout, for factors that will be kept in float64.
    Raises VerificationError when a factor holds NaN or Inf.
    """
    if layer.rank < min(layer.matrix_shape):
        for dtype in (torch.float64,) if exact else (torch.float32, torch.float64):
            found = _from_grams(layer, choose, dtype, device)
            if found is not None:
                return found
    return _from_qr(layer, choose, device)


def _factors(layer: LowRank, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    up = torch.cat([block.up.to(device, dtype) for block in layer.blocks], dim=1)
    down = torch.cat([block.down.to(device, dtype) for block in layer.blocks])
    return up, down, layer.scales(device)


def _from_grams(
    layer: LowRank, choose: Callable[[Tensor], int], dtype: torch.dtype, device: str
) -> Decomposition | None:
    """None when the Gram matrices in this precision do not carry the wanted singular vectors."""
    up, down, scales = _factors(layer, dtype, device)
    gram_up = product(up, up) * torch.outer(scales, scales)
    gram_down = product(down.T, down.T)
    if not bool(torch.isfinite(gram_up.diagonal().sum() + gram_down.diagonal().sum())):
        return None
    root, failed = torch.linalg.cholesky_ex(gram_up)
    if int(failed):
        return None
    squares, vectors = torch.linalg.eigh(root.T @ gram_down @ root)
    squares, vectors = squares.flip(0).clamp_min(0), vectors.flip(1)
    sigma = squares.sqrt()
    kept = choose(sigma)
    rows = root @ vectors
    columns = gram_down @ rows
    doubt = _NOISE[dtype] * _doubt(gram_up, gram_down, rows, columns, squares)
    if not bool((doubt[:kept] < _TOLERATED_DRIFT * squares[:kept]).all()):
        return None
    if float(torch.linalg.vector_norm(doubt[kept:])) > _TOLERATED_TAIL * float(squares[kept:].sum()):
        return None
    up_mix = scales[:, None] * columns[:, :kept] / sigma[:kept] ** 1.5
    down_mix = (rows[:, :kept] / sigma[:kept].sqrt()).T
    return Decomposition(sigma, kept, up, up_mix, down_mix, down)


def _doubt(gram_up: Tensor, gram_down: Tensor, rows: Tensor, columns: Tensor, squares: Tensor) -> Tensor:
    """How much a relative error of the Gram matrices can move each σ², to first order; both grow with the condition.

    With x = X u (`rows`), σ² = x^T G_A x, so an error E of G_A moves it by x^T E x <= ‖E‖ ‖x‖²; by the same argument
    from the other side, one of G_B by up to ‖E‖ ‖G_A x‖² / σ² (`columns` are G_A x). Over σ² it is also what E does to
    the orthonormality of the singular vectors.
    """
    right = gram_down.diagonal().sum() * rows.square().sum(0)
    left = gram_up.diagonal().sum() * columns.square().sum(0) / squares
    return torch.maximum(left.where(squares > 0, 0.0), right)


def _from_qr(layer: LowRank, choose: Callable[[Tensor], int], device: str) -> Decomposition:
    up, down, scales = _factors(layer, torch.float64, device)
    up = up * scales
    if not bool(torch.isfinite(up.sum() + down.sum())):
        raise VerificationError("the weights hold NaN or Inf")
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    u, sigma, vh = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    noise = _NEGLIGIBLE * float(torch.linalg.matrix_norm(r_up)) * float(torch.linalg.matrix_norm(r_down))
    sigma = sigma[sigma > noise]
    kept = choose(sigma)
    balance = sigma[:kept].sqrt()
    return Decomposition(sigma, kept, q_up, u[:, :kept] * balance, balance[:, None] * vh[:kept], q_down.T)
