"""Merging in the joint low-rank basis: KnOTS, TSV-Merge, Iso-C and SLERP, from factors, never forming ΔW.

Each gives the singular value decomposition of the merged layer, so reducing its rank is taking the first triplets.
Layers that are alike go together (`alike`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lorahub.algebra.batched import Factored, batches
from lorahub.algebra.decompose import eigen, naming, triplets, trusted
from lorahub.algebra.geometry import layer_gram
from lorahub.algebra.lowrank import LowRank
from lorahub.merge.alike import (
    Alike,
    Chooser,
    Pair,
    check_finite,
    content,
    decomposed,
    factors_of,
    gram_of,
    stack,
    with_content,
    zero,
)

_DOUBTFUL = 1e-3
"""Singular values below this share of the largest may be rounding of float32 products."""
_DEPENDENT = 1e-6
"""Eigenvalues below this share of the largest mean that vectors depend on each other."""
_PARALLEL = 0.9995
"""Above this cosine an arc is a straight line (as in mergekit)."""


def knots(
    layers: Alike,
    chooser: Chooser,
    combine: Callable[[Mapping[int, Pair], Sequence[str]], Tensor],
    exact: bool,
    device: str,
) -> dict[str, Factored]:
    """KnOTS (arXiv 2410.19735): [ΔW_1 ... ΔW_n] = U Σ [V_1 ... V_n]; ΔW = U · combine(Σ V_1, ..., Σ V_n).

    combine: merges matrices given as factor pairs, as ΔW are merged elsewhere; here the shares Σ V_i [k, in].

    With B = [B_1 ... B_n] and X_i X_i^T = A_i A_i^T: (B X)^T (B X) = W Σ² W^T, U = B X W Σ^-1, Σ V_i = U^T B_i A_i.
    """
    factors = factors_of(layers, _dtype(exact), device)
    ups = torch.cat([up for up, _ in factors.values()], 2)
    gram = gram_of(ups, torch.float64)
    others = [gram_of(down.mT, torch.float64) for _, down in factors.values()]
    check_finite(layers, [gram, *others])
    roots = _block_diagonal([_root(other) for other in others])
    squares, vectors = torch.linalg.eigh(roots.mT @ gram @ roots)
    sigma = squares.flip(1).clamp_min(0).sqrt()
    known = {name: content(each) for name, each in zip(layers, sigma.cpu(), strict=True)}
    if len(set(known.values())) > 1:  # shares of different heights are no stack
        return {
            name: found
            for names in batches(layers, known.__getitem__, lambda name: 0)
            for name, found in knots({name: layers[name] for name in names}, chooser, combine, exact, device).items()
        }
    if not (height := next(iter(known.values()))):
        return {name: zero(next(iter(each.values()))) for name, each in layers.items()}
    basis = roots @ (vectors.flip(2)[..., :height] / sigma[:, None, :height])
    ranks = [down.shape[1] for _, down in factors.values()]
    shares = torch.split((basis.mT @ gram).to(ups.dtype), ranks, dim=2)
    rows = combine({i: (share, factors[i][1]) for i, share in zip(factors, shares, strict=True)}, [*layers])
    return _leading(layers, ups, basis, rows, chooser)


def tsv(layers: Alike, share: float, chooser: Chooser, exact: bool, device: str) -> dict[str, Factored]:
    """TSV-Merge (arXiv 2412.00081): ΔW = U' Σ V'^T, Σ the leading `share` of all adapters' singular values.

    U' and V' are the matrices with orthonormal columns nearest to the adapters' singular vectors side by side (Procrustes):
    U (U^T U)^-1/2. The inverse is a pseudo-inverse: directions that adapters share count once.
    """

    def kept(sigma: Tensor) -> int:
        return min(math.ceil(share * len(sigma)), content(sigma))

    # All triplets are wanted, the smallest too, which float32 products seldom carry.
    parts: dict[str, list[Factored]] = {name: [] for name in layers}
    for i in next(iter(layers.values())):
        one = {name: each[i] for name, each in layers.items()}
        for name, found in decomposed(one, lambda name: kept, True, device, _dtype(exact)).items():
            parts[name].append(found)
    ranks = {name: tuple(part.up.shape[1] for part in each) for name, each in parts.items()}
    result: dict[str, Factored] = {}
    for names in batches(layers, ranks.__getitem__, lambda name: 0):
        if any(ranks[names[0]]):
            result |= _orthogonal({name: parts[name] for name in names}, chooser, exact, device)
        else:
            result |= {name: zero(next(iter(layers[name].values()))) for name in names}
    return result


def _orthogonal(
    parts: Mapping[str, Sequence[Factored]], chooser: Chooser, exact: bool, device: str
) -> dict[str, Factored]:
    """U' Σ V'^T from the adapters' singular triplets, of each adapter as many in all layers."""
    ups = stack([torch.cat([part.up for part in each], 1) for each in parts.values()])
    downs = stack([torch.cat([part.down for part in each]) for each in parts.values()])
    scales = stack([torch.cat([part.sigma[: part.up.shape[1]] for part in each]) for each in parts.values()])
    left, full_left = _whitened(ups, scales.sqrt().to(ups.device))
    right, full_right = _whitened(downs.mT, scales.sqrt().to(ups.device))
    full = dict(zip(parts, (full_left & full_right).cpu().tolist(), strict=True))
    result: dict[str, Factored] = {}
    if any(full.values()):  # then U' Σ V'^T is a singular value decomposition already
        sigma, order = scales.sort(descending=True, stable=True)
        ranks = [chooser(name)(each) for name, each in zip(parts, sigma, strict=True)]
        order = order[:, None, : max(ranks)].to(ups.device)
        balance = sigma[:, None, : max(ranks)].sqrt().to(ups.device)
        up_mix, down_mix = (torch.take_along_dim(mix, order, 2) * balance for mix in (left, right))
        result = _taken(parts, sigma, ranks, ups @ up_mix.to(ups.dtype), down_mix.mT.to(downs.dtype) @ downs)
    middle = ((left * scales[:, None].to(left.device)) @ right.mT).to(ups.dtype)
    rest = {name: LowRank.of(ups[i] @ middle[i], downs[i]) for i, name in enumerate(parts) if not full[name]}
    return result | decomposed(rest, with_content(chooser), exact, device)


def iso_c(layers: Alike, chooser: Chooser, exact: bool, device: str) -> dict[str, Factored]:
    """Iso-C (arXiv 2502.04959): the weighted sum with every singular value replaced by their mean.

    The mean is over the directions that the sum has; with a smaller rank, the strongest of them stay.
    """

    def flat(sigma: Tensor) -> Tensor:
        known = sigma[: content(sigma)]
        return known.mean().expand(len(known)) if len(known) else known

    kept = with_content(lambda name: lambda sigma: chooser(name)(flat(sigma)))
    sums = {name: _sum([*each.values()]) for name, each in layers.items()}
    found = decomposed(sums, kept, exact, device)
    if not exact and device == "cpu":  # is the last one a direction, or rounding?
        spectra = {name: each.sigma for name, each in found.items() if len(each.sigma)}
        doubtful = [name for name, sigma in spectra.items() if float(sigma[-1]) < _DOUBTFUL * float(sigma[0])]
        found |= decomposed({name: sums[name] for name in doubtful}, kept, True, device)
    result: dict[str, Factored] = {}
    for name, each in found.items():
        sigma, rank = flat(each.sigma).clone(), each.up.shape[1]
        balance = (sigma[:rank] / each.sigma[:rank]).sqrt().to(each.up)
        result[name] = Factored(sigma, each.up.mul_(balance), each.down.mul_(balance[:, None]))
    return result


def slerp(layers: Alike, weights: Sequence[float], chooser: Chooser, exact: bool, device: str) -> dict[str, Factored]:
    """(sin((1-t)θ) a + sin(tθ) b) / sin θ, θ the angle between the layers a and b, t = w_b / (w_a + w_b).

    Along the straight line where they are parallel or one is zero. `layers` are not weighted.
    """
    t = weights[1] / sum(weights)
    turned = {}
    for (name, each), products in zip(layers.items(), _inner_products(layers, device), strict=True):
        shares = (1 - t, t)
        lengths = math.sqrt(max(products[0][0], 0.0) * max(products[-1][-1], 0.0))
        cosine = products[0][-1] / lengths if lengths else 1.0
        if abs(cosine) < _PARALLEL:
            angle = math.acos(cosine)
            shares = (math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle))
        turned[name] = _sum([layer * shares[i] for i, layer in each.items()])
    return decomposed(turned, with_content(chooser), exact, device)


def _inner_products(layers: Alike, device: str) -> list[list[list[float]]]:
    """Of every layer, the matrix of inner products of the adapters."""
    if device == "cpu":
        grams = []
        for name, each in layers.items():
            with naming(name):
                grams.append(layer_gram([*each.values()]).tolist())
        return grams
    pairs = factors_of(layers, torch.float64, device).values()
    rows = [
        torch.stack([((one.mT @ up) * (other @ down.mT)).sum((1, 2)) for up, down in pairs], 1) for one, other in pairs
    ]
    found: list[list[list[float]]] = torch.stack(rows, 1).cpu().tolist()
    return found


def _dtype(exact: bool) -> torch.dtype:
    return torch.float64 if exact else torch.float32


def _block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    return stack([torch.block_diag(*each) for each in zip(*blocks, strict=True)])  # type: ignore[no-untyped-call]


def _root(gram: Tensor) -> Tensor:
    """X with X X^T = gram, which may be singular."""
    found: tuple[Tensor, Tensor] = torch.linalg.cholesky_ex(gram)
    root, failed = found
    if bool(failed.any()):
        values, vectors = torch.linalg.eigh(gram)
        root = vectors * values.clamp_min(0).sqrt()[:, None]
    return root


def _leading(names: Iterable[str], ups: Tensor, basis: Tensor, rows: Tensor, chooser: Chooser) -> dict[str, Factored]:
    """The wanted singular triplets of ups @ basis @ rows, of which the first two make orthonormal columns.

    The Gram matrices come from products in the dtype of the rows where `trusted` says that these will do, else in float64.
    """
    one = torch.eye(rows.shape[1], dtype=torch.float64, device=rows.device).expand(len(rows), -1, -1)
    for dtype in (rows.dtype, torch.float64) if rows.device.type == "cpu" else (torch.float64,):
        gram = gram_of(rows.mT, dtype)
        squares, vectors = eigen(gram)
        sigma = [each[: content(each)] for each in squares.cpu().sqrt()]
        ranks = [min(chooser(name)(each), len(each)) for name, each in zip(names, sigma, strict=True)]
        kept = vectors[..., : max(ranks)]
        if dtype == torch.float64:
            break
        doubts = triplets(one, gram, None, squares, kept, dtype)[2:]
        if all(map(trusted, squares, *doubts, ranks, [dtype] * len(ranks))):
            break
    balance = squares[:, None, : max(ranks)] ** 0.25
    up_mix, down_mix = basis @ (kept * balance), (kept / balance).mT
    return _taken(names, sigma, ranks, ups @ up_mix.to(ups.dtype), down_mix.to(rows.dtype) @ rows)


def _taken(
    names: Iterable[str], sigma: Iterable[Tensor], ranks: Sequence[int], ups: Tensor, downs: Tensor
) -> dict[str, Factored]:
    """Of each layer as many triplets as its rank says."""
    each = zip(names, sigma, ranks, ups, downs, strict=True)
    return {name: Factored(all_of_them, up[:, :rank], down[:rank]) for name, all_of_them, rank, up, down in each}


def _whitened(columns: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """(M [layers, k, k] for which columns @ M is Y (Y^T Y)^-1/2, Y the columns over their lengths [layers, k]; whether
    the inverse is one, or a pseudo-inverse)."""
    gram = gram_of(columns, columns.dtype) / (lengths[:, :, None] * lengths[:, None])
    values, vectors = torch.linalg.eigh(gram)
    known = values > _DEPENDENT * values[:, -1:]
    inverse = values.where(known, 1.0).rsqrt() * known
    return (vectors * inverse[:, None]) @ vectors.mT / lengths[:, :, None], known.all(1)


def _sum(layers: Sequence[LowRank]) -> LowRank:
    total, *others = layers
    for layer in others:
        total = total + layer
    return total
