"""Merging in the joint low-rank basis: KnOTS, TSV-Merge, Iso-C and SLERP, from factors, never forming ΔW.

Each gives the singular value decomposition of the merged layer, so reducing its rank is taking the first triplets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lorahub.algebra.decompose import Decomposition, decompose, triplets, trusted
from lorahub.algebra.geometry import layer_gram, product
from lorahub.algebra.lowrank import LowRank
from lorahub.errors import VerificationError
from lorahub.merge.sparsify import Pair

Choose = Callable[[Tensor], int]

_CONTENT = 1e-7
"""Singular values below this share of the largest are rounding, and have no direction."""
_DOUBTFUL = 1e-3
"""Singular values below this share of the largest may be rounding of float32 products."""
_DEPENDENT = 1e-6
"""Eigenvalues below this share of the largest mean that vectors depend on each other."""
_PARALLEL = 0.9995
"""Above this cosine an arc is a straight line (as in mergekit)."""


def content(sigma: Tensor) -> int:
    """How many singular values are more than rounding."""
    return int((sigma > _CONTENT * sigma[:1]).sum())


def knots(
    layers: Mapping[int, LowRank],
    name: str,
    choose: Choose,
    combine: Callable[[Mapping[int, Pair], str], Tensor],
    exact: bool,
    device: str,
) -> Decomposition:
    """KnOTS (arXiv 2410.19735): [ΔW_1 ... ΔW_n] = U Σ [V_1 ... V_n]; ΔW = U · combine(Σ V_1, ..., Σ V_n).

    combine: merges matrices given as factor pairs, as ΔW are merged elsewhere; here the shares Σ V_i [k, in].

    With B = [B_1 ... B_n] and X_i X_i^T = A_i A_i^T: (B X)^T (B X) = W Σ² W^T, U = B X W Σ^-1, Σ V_i = U^T B_i A_i.
    """
    factors = {i: layer.factors(_dtype(exact), device) for i, layer in layers.items()}
    ups = torch.cat([up for up, _ in factors.values()], 1)
    if not all(bool(torch.isfinite(up.sum() + down.sum())) for up, down in factors.values()):
        raise VerificationError("the weights hold NaN or Inf")
    gram = _gram(ups)
    roots = _block_diagonal([_root(_gram(down.T)) for _, down in factors.values()])
    sigma, vectors = _eigen(roots.T @ gram @ roots)
    if not len(sigma):
        return _zero([*layers.values()], device)
    basis = roots @ (vectors / sigma)
    ranks = [down.shape[0] for _, down in factors.values()]
    shares = torch.split((basis.T @ gram).to(ups.dtype), ranks, dim=1)
    rows = combine({i: (share, factors[i][1]) for i, share in zip(factors, shares, strict=True)}, name)
    sigma, vectors, rank = _leading(rows, choose)
    balance = sigma[:rank].sqrt()
    return Decomposition(sigma, rank, ups, basis @ (vectors[:, :rank] * balance), (vectors[:, :rank] / balance).T, rows)


def tsv(layers: Sequence[LowRank], share: float, choose: Choose, exact: bool, device: str) -> Decomposition:
    """TSV-Merge (arXiv 2412.00081): ΔW = U' Σ V'^T, Σ the leading `share` of all adapters' singular values.

    U' and V' are the matrices with orthonormal columns nearest to the adapters' singular vectors side by side (Procrustes):
    U (U^T U)^-1/2. The inverse is a pseudo-inverse: directions that adapters share count once.
    """

    def kept(sigma: Tensor) -> int:
        return min(math.ceil(share * len(sigma)), content(sigma))

    # All triplets are wanted, the smallest too, which float32 products seldom carry.
    parts = [decompose(layer, kept, exact=True, device=device) for layer in layers]
    scales = torch.cat([part.sigma[: part.rank] for part in parts])
    if not len(scales):
        return _zero(layers, device)
    ups = torch.cat([part.left for part in parts], 1).to(_dtype(exact))
    downs = torch.cat([part.right for part in parts]).to(_dtype(exact))
    left, full_left = _whitened(ups, _block_diagonal([part.up_mix for part in parts]) / scales.sqrt())
    right, full_right = _whitened(downs.T, _block_diagonal([part.down_mix.T for part in parts]) / scales.sqrt())
    if full_left and full_right:  # then U' Σ V'^T is a singular value decomposition already
        sigma, order = scales.sort(descending=True, stable=True)
        rank = choose(sigma)
        balance = sigma[:rank].sqrt()
        up_mix, down_mix = left[:, order[:rank]] * balance, (right[:, order[:rank]] * balance).T
        return Decomposition(sigma, rank, ups, up_mix, down_mix, downs)
    whole = LowRank.of(ups @ ((left * scales) @ right.T).to(ups.dtype), downs)
    return decompose(whole, lambda sigma: min(choose(sigma), content(sigma)), exact=exact, device=device)


def iso_c(layers: Sequence[LowRank], choose: Choose, exact: bool, device: str) -> Decomposition:
    """Iso-C (arXiv 2502.04959): the weighted sum with every singular value replaced by their mean.

    The mean is over the directions that the sum has; with a smaller rank, the strongest of them stay.
    """

    def flat(sigma: Tensor) -> Tensor:
        known = sigma[: content(sigma)]
        return known.mean().expand(len(known)) if len(known) else known

    def kept(sigma: Tensor) -> int:
        return min(choose(flat(sigma)), content(sigma))

    found = decompose(_sum(layers), kept, exact=exact, device=device)
    if (
        not exact and len(found.sigma) and float(found.sigma[-1]) < _DOUBTFUL * float(found.sigma[0])
    ):  # is it a direction, or rounding?
        found = decompose(_sum(layers), kept, exact=True, device=device)
    sigma, rank = flat(found.sigma).clone(), found.rank
    balance = (sigma[:rank] / found.sigma[:rank]).sqrt()
    return Decomposition(
        sigma, rank, found.left, found.up_mix * balance, balance[:, None] * found.down_mix, found.right
    )


def slerp(
    layers: Mapping[int, LowRank], weights: Sequence[float], choose: Choose, exact: bool, device: str
) -> Decomposition:
    """(sin((1-t)θ) a + sin(tθ) b) / sin θ, θ the angle between the layers a and b, t = w_b / (w_a + w_b).

    Along the straight line where they are parallel or one is zero. `layers` are not weighted.
    """
    t = weights[1] / sum(weights)
    shares = (1 - t, t)
    if len(layers) == 2:
        gram = layer_gram([layers[0], layers[1]], device)
        lengths = float(gram.diagonal().prod().sqrt())
        cosine = float(gram[0, 1]) / lengths if lengths else 1.0
        if abs(cosine) < _PARALLEL:
            angle = math.acos(cosine)
            shares = (math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle))
    turned = _sum([layer * shares[i] for i, layer in layers.items()])
    return decompose(turned, lambda sigma: min(choose(sigma), content(sigma)), exact=exact, device=device)


def _zero(layers: Sequence[LowRank], device: str) -> Decomposition:
    """The decomposition of a layer that is zero, as all of these are."""
    return decompose(layers[0], lambda sigma: 0, exact=True, device=device)


def _dtype(exact: bool) -> torch.dtype:
    return torch.float64 if exact else torch.float32


def _block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    joined: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return joined


def _gram(columns: Tensor) -> Tensor:
    """X^T X in float64."""
    wide = columns.double()
    return wide.T @ wide


def _root(gram: Tensor) -> Tensor:
    """X with X X^T = gram, which may be singular."""
    found: tuple[Tensor, Tensor] = torch.linalg.eigh(gram)
    values, vectors = found
    return vectors * values.clamp_min(0).sqrt()


def _eigen(gram: Tensor) -> tuple[Tensor, Tensor]:
    """(singular values, descending, that are more than rounding; their vectors) of X, from X^T X."""
    squares, vectors = torch.linalg.eigh(gram)
    sigma = squares.flip(0).clamp_min(0).sqrt()
    known = content(sigma)
    return sigma[:known], vectors.flip(1)[:, :known]


def _leading(rows: Tensor, choose: Choose) -> tuple[Tensor, Tensor, int]:
    """(singular values, descending, that are more than rounding; their left vectors; how many are kept) of [k, n].

    The Gram matrix comes from products in the dtype of the rows where `trusted` says that these will do, else in float64.
    """
    one = torch.eye(len(rows), dtype=torch.float64, device=rows.device)
    for dtype in (rows.dtype, torch.float64):
        columns = rows.T.to(dtype)
        squares, vectors, _, doubt = triplets(one, product(columns, columns), one, dtype)
        sigma = squares.sqrt()
        known = content(sigma)
        rank = min(choose(sigma[:known]), known)
        if trusted(squares, doubt, rank, dtype):
            break
    return sigma[:known], vectors[:, :known], rank


def _whitened(columns: Tensor, mix: Tensor) -> tuple[Tensor, bool]:
    """(mix (Y^T Y)^-1/2 with Y = columns @ mix and the pseudo-inverse, whether it is an inverse)."""
    values, vectors = torch.linalg.eigh(mix.T @ product(columns, columns) @ mix)
    known = values > _DEPENDENT * values[-1]
    inverse = torch.where(known, values, 1.0).rsqrt() * known
    return mix @ ((vectors * inverse) @ vectors.T), bool(known.all())


def _sum(layers: Sequence[LowRank]) -> LowRank:
    total, *others = layers
    for layer in others:
        total = total + layer
    return total
