"""The singular value decomposition of a layer from its factors, without the dense matrix.

With ΔW = B s A (B [out, R], A [R, in], s the scales), G_B = B^T B and G_A = A A^T:

    X X^T = s G_B s                     Cholesky, R x R
    X^T G_A X = U S² U^T                eigh, R x R; S are the singular values of ΔW
    down = S^-1/2 U^T X^T A,   up = B s G_A X U S^-3/2

so only thin products touch the long dimensions. `up @ down` is ΔW projected on the leading right singular vectors
V^T = S^-1 U^T X^T A; how far these are from orthonormal is known from the small matrices (`_drift`). Three routes, each
taken when the one before it cannot keep the drift small: Gram matrices from float32 products, from float64 products,
and Householder QR of the factors in float64, which squares nothing and bears any input.
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
        raise VerificationError("the weights hold NaN or Inf")
    root, failed = torch.linalg.cholesky_ex(gram_up)
    if int(failed):
        return None
    squares, vectors = torch.linalg.eigh(root.T @ gram_down @ root)
    squares, vectors = squares.flip(0), vectors.flip(1)
    sigma = squares.clamp_min(0).sqrt()
    kept = choose(sigma)
    if float(sigma[max(kept - 1, 0)]) == 0:
        return None
    # Only the wanted triplets must be accurate; what follows them is reported as error, never built.
    rows = root @ vectors[:, :kept] / sigma[:kept]
    if kept and _drift(gram_up, gram_down, rows, sigma[:kept]) * _NOISE[dtype] > _TOLERATED_DRIFT:
        return None
    balance = sigma[:kept].sqrt()
    up_mix = scales[:, None] * (gram_down @ rows) / balance
    return Decomposition(sigma, kept, up, up_mix, (rows * balance).T, down)


def _drift(gram_up: Tensor, gram_down: Tensor, rows: Tensor, sigma: Tensor) -> float:
    """How much a relative error of the Gram matrices grows in the kept singular vectors' own Gram matrix.

    V^T = rows^T A and U = (B s) columns, so an error E of G_A moves V^T V by rows^T E rows, which is at most
    ‖E‖ max ‖row‖²; the same for G_B and U. Both are 1 for orthonormal factors and grow with their condition.
    """
    columns = gram_down @ rows / sigma
    right = gram_down.diagonal().sum() * rows.square().sum(0).max()
    left = gram_up.diagonal().sum() * columns.square().sum(0).max()
    return float(torch.maximum(left, right))


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
