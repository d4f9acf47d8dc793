"""The singular value decomposition of a layer from its factors, without the dense matrix.

With ΔW = B s A (B [out, R], A [R, in], s the scales), G_B = B^T B and G_A = A A^T:

    X X^T = s G_B s                     Cholesky, R x R
    X^T G_A X = U S² U^T                eigh, R x R; S are the singular values of ΔW
    down = S^-1/2 U^T X^T A,   up = B s G_A X U S^-3/2

so only thin products touch the long dimensions. `up @ down` is ΔW projected on the leading right singular vectors
V^T = S^-1 U^T X^T A. How wrong these and the singular values can be is known from the small matrices (`trusted`). Three
routes, each taken when the one before it leaves too much doubt: Gram matrices from float32 products, from float64
products, and Householder QR of the factors in float64, which squares nothing and bears any input.

What is done to the small matrices is written once for both libraries: on the CPU NumPy does it, which starts a small
operation in a third of the time that torch takes, on a device torch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from lorahub.algebra.geometry import Matrix, square, symmetric
from lorahub.algebra.lowrank import LowRank
from lorahub.algebra.machine import in_numpy
from lorahub.errors import VerificationError

Array = TypeVar("Array", Tensor, Matrix)

_NOISE = {torch.float32: 2e-8, torch.float64: 2e-16}
"""Relative error of the entries of a Gram matrix: unit roundoff, lessened by the chunked float64 sums."""
_TOLERATED_DRIFT = 1e-4
"""Departure of the kept singular vectors from orthonormality."""
_TOLERATED_EXCESS = 1e-10
"""Share by which the squared error may rise above the optimum (Eckart-Young). Measured on spectra i^-0.6 to i^-1.6 in
half precision, 128 columns to rank 16, 64 and 120: the error rose by at most 3e-11 of itself, on every route."""
_TOLERATED_TAIL = 1e-5
"""Share by which the reported squared error may be wrong; measured on the same: at most 4e-6."""
_INVISIBLE = {torch.float32: 1e-8, torch.float64: 1e-12}
"""Errors below this share of the norm need no better route: rounding the factors to the precision makes larger ones."""
_TOLERATED_SPECTRUM = 1e-2
"""Share by which the smallest squared singular value may be wrong where only the values are wanted."""
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


@contextlib.contextmanager
def naming(layer: str) -> Iterator[None]:
    """Puts the layer's name before what is wrong with its values."""
    try:
        yield
    except VerificationError as error:
        raise VerificationError(f"{layer}: {error}") from None


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


@in_numpy()
def spectrum_of_products(gram_up: Matrix, gram_down: Matrix, scales: Matrix, dtype: torch.dtype) -> Tensor | None:
    """The singular values (float64, descending) from B^T B, A A^T and s; None when these do not show all of them clearly.

    dtype: of the products that the Gram matrices come from. Trusted where the smallest σ² is a hundred times what all σ²
    together may be off by.
    """
    gram_up = gram_up * scales[:, None] * scales
    root = _root(gram_up, gram_down) if len(scales) else None
    if root is None:
        return None
    squares = np.linalg.eigvalsh(root.T @ gram_down @ root)[::-1]
    if not _overall(gram_down.diagonal(), gram_up.diagonal(), squares, dtype) < _TOLERATED_SPECTRUM * squares[-1]:
        return None
    return torch.from_numpy(np.sqrt(squares))


@in_numpy()
def _from_grams(
    layer: LowRank, choose: Callable[[Tensor], int], dtype: torch.dtype, device: str
) -> Decomposition | None:
    """None when the Gram matrices in this precision do not carry the wanted singular vectors."""
    (up, down), scales = layer.unscaled(dtype, device), layer.scales(device)
    if up.device.type == "cpu":
        gram_up, gram_down = (symmetric(columns.detach().numpy()) for columns in (up, down.T))
        found = _from_small(gram_up, gram_down, scales.numpy(), choose, dtype)
    else:
        found = _from_small(square(up), square(down.T), scales, choose, dtype)
    return None if found is None else Decomposition(*found[:2], up, *found[2:], down)


def _from_small(
    gram_up: Array, gram_down: Array, scales: Array, choose: Callable[[Tensor], int], dtype: torch.dtype
) -> tuple[Tensor, int, Tensor, Tensor] | None:
    """(σ, rank, up_mix, down_mix) of a `Decomposition` from G_B, G_A and s."""
    gram_up = gram_up * scales[:, None] * scales
    root = _root(gram_up, gram_down)
    if root is None:
        return None
    squares, vectors = eigen(gram_down, root)
    sigma = squares**0.5
    kept = choose(_tensor(sigma))
    rows, columns, doubt, overall = triplets(gram_up, gram_down, root, squares, vectors[:, :kept], dtype)
    if not trusted(squares, doubt, overall, kept, dtype):
        return None
    up_mix, down_mix = mixes(rows, columns, scales, sigma, kept)
    return _tensor(sigma), kept, _tensor(up_mix), _tensor(down_mix)


def _root(gram_up: Array, gram_down: Array) -> Array | None:
    """X, lower triangular, with X X^T = G_B; None where there is none, or where either matrix holds NaN or Inf."""
    if not math.isfinite(float(gram_up.trace() + gram_down.trace())):
        return None
    if isinstance(gram_up, Tensor):
        root, failed = torch.linalg.cholesky_ex(gram_up)
        return None if int(failed) else root
    with contextlib.suppress(np.linalg.LinAlgError):
        return np.linalg.cholesky(gram_up)
    return None


def eigen(gram_down: Array, root: Array | None = None) -> tuple[Array, Array]:
    """(σ² descending [..., R], U [..., R, R]) of X^T G_A X; without X, of G_A."""
    library = _library(gram_down)
    squares, vectors = library.linalg.eigh(gram_down if root is None else root.mT @ gram_down @ root)
    return library.flip(squares, (-1,)).clip(0), library.flip(vectors, (-1,))


def triplets(
    gram_up: Array, gram_down: Array, root: Array | None, squares: Array, vectors: Array, dtype: torch.dtype
) -> tuple[Array, Array, Array, Array]:
    """(X U, G_A X U, how far off each σ² may be [..., k], and all R of them together [...]) for k leading vectors.

    dtype: of the products that the Gram matrices come from. To first order: with x = X u, σ² = x^T G_A x, so entries of
    G_A that are wrong by independent E_ij ~ sqrt(a_i a_j), a its diagonal, move σ² by x^T E x ~ Σ a_i x_i². From the other
    side, with y = G_A x, σ² = y^T (s G_B s) y / σ². Over all R, X U U^T X^T = s G_B s, so either side sums to Σ a_i b_i.
    """
    rows = vectors if root is None else root @ vectors
    columns = gram_down @ rows
    known = squares[..., : vectors.shape[-1]]
    own, other = _diagonal(gram_down), _diagonal(gram_up)
    right = (own[..., None, :] @ (rows * rows))[..., 0, :]
    left = (other[..., None, :] @ (columns * columns))[..., 0, :] / (known + (known == 0))
    each = _NOISE[dtype] * (left + right) / 2 + _NOISE[torch.float64] * squares[..., :1]
    return rows, columns, each, _overall(own, other, squares, dtype)


def _overall(own: Array, other: Array, squares: Array, dtype: torch.dtype) -> Array:
    """How far off all σ² together may be (see `triplets`), from the diagonals of G_A and s G_B s [..., R]."""
    of_eigh = _NOISE[torch.float64] * squares[..., 0] * squares.shape[-1]
    result: Array = _NOISE[dtype] * (own * other).sum(-1) + of_eigh
    return result


def mixes(rows: Array, columns: Array, scales: Array, sigma: Array, kept: int) -> tuple[Array, Array]:
    """(up_mix [..., R, kept], down_mix [..., kept, R]) of a `Decomposition`, from what `triplets` gives."""
    sigma = sigma[..., None, :kept]
    up_mix = scales[..., :, None] * columns[..., :kept] / sigma**1.5
    return up_mix, (rows[..., :kept] / sigma**0.5).mT


def _diagonal(matrix: Array) -> Array:
    return _library(matrix).einsum("...ii->...i", matrix)  # type: ignore[no-any-return]


def _library(array: Array) -> Any:
    return torch if isinstance(array, Tensor) else np


def _tensor(array: Array) -> Tensor:
    return array if isinstance(array, Tensor) else torch.from_numpy(array)


def trusted(squares: Array, doubt: Array, overall: Array, kept: int, dtype: torch.dtype) -> bool:
    """Whether σ² that are off by what `triplets` says leave the kept triplets and the reported error good enough.

    The inner product of singular vectors i and j is off by sqrt(doubt_i doubt_j) / (σ_i σ_j). So, of the large σ_i v_i,
    a share is projected away along a small v_j: `leak` is the squared length of all that, an error beyond the optimum.
    """
    variances, doubts = (each.cpu().numpy() if isinstance(each, Tensor) else each for each in (squares, doubt))
    large, doubts = variances[:kept], doubts[:kept]
    if not (doubts < _TOLERATED_DRIFT * large).all():
        return False
    known, tail = float(large.sum()), float(variances[kept:].sum())
    own = float(doubts.sum())
    leak = own * float((doubts / large).sum())
    if leak > max(_TOLERATED_EXCESS * tail, _INVISIBLE[dtype] ** 2 * (known + tail)):
        return False
    return kept == len(variances) or float(overall) - own <= _TOLERATED_TAIL * tail


def _from_qr(layer: LowRank, choose: Callable[[Tensor], int], device: str) -> Decomposition:
    (up, down), scales = layer.unscaled(torch.float64, device), layer.scales(device)
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
