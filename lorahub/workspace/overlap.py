"""How two adapters lie to one another: angle, and overlap of what they read and write. From factors, never dense.

    cosine = <A, B> / (|A| |B|)                                  Frobenius inner product, over shared layers
    overlap = Σ_layers ||P_A P_B||_F² / Σ_layers min(rank A, rank B)

P_A projects on the column space of ΔA (what it writes: `out`) or on its row space (what it reads: `in`). Per layer
||P_A P_B||_F² is the sum of the squared cosines of the principal angles (Björck & Golub, 1973), so 1 means that the smaller
space lies in the larger one; between random spaces of dimension n it is max(rank A, rank B) / n (`chance`).

With ΔA = U V, G = U^T U, H = V V^T: U H^1/2 has the columns space of ΔA, and H^1/2 G H^1/2 = E S² E^T gives its singular
values and an orthonormal basis Q_A = U H^1/2 E S^-1. So Q_A^T Q_B needs the small product U_A^T U_B only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from lorahub.algebra.adapter import Adapter
from lorahub.algebra.geometry import layer_grams, product, square
from lorahub.algebra.lowrank import LowRank
from lorahub.files.loading import load_path
from lorahub.loading import load_version
from lorahub.references import find
from lorahub.workspace.compatibility import Pair
from lorahub.workspace.core import Workspace

Progress = Callable[[int, int], None]

NEGLIGIBLE = 1e-3
"""Directions whose singular value is below this share of the layer's largest do not count: half precision blurs them."""


@dataclass(frozen=True)
class _Spaces:
    """Factors of one layer in float32, and what turns them into orthonormal bases: Q_out = up @ out, Q_in = down^T @ inn."""

    up: Tensor
    down: Tensor
    out: Tensor
    inn: Tensor

    @property
    def rank(self) -> int:
        return self.out.shape[1]


def measure(
    workspace: Workspace | None, references: Sequence[str], base: str, *, progress: Progress | None = None
) -> tuple[Pair, ...]:
    """Every pair of the adapters, loaded as adapters of that base ("unlisted": as the files say)."""
    wanted = None if base == "unlisted" else base
    loaded = [_load(workspace, reference, wanted) for reference in references]
    jobs = list(combinations(range(len(loaded)), 2))
    found = []
    for done, (i, j) in enumerate(jobs, 1):
        found.append(pair(references[i], references[j], loaded[i], loaded[j]))
        if progress:
            progress(done, len(jobs))
    return tuple(found)


def pair(first: str, second: str, one: Adapter, other: Adapter) -> Pair:
    """The measures of two adapters of one base. Raises BaseMismatchError, and VerificationError for NaN or Inf."""
    grams = layer_grams([one, other])
    lengths = [sum(float(gram[i, i]) for gram in grams.values()) ** 0.5 for i in (0, 1)]
    shared = [name for name in one.layers if name in other.layers]
    total = sum((grams[name] for name in shared), start=torch.zeros(2, 2, dtype=torch.float64))
    scale = float(total[0, 0] * total[1, 1]) ** 0.5
    cosine = max(-1.0, min(1.0, float(total[0, 1]) / scale)) if scale else None
    out = inn = chance = 0.0
    smaller = 0
    for name in shared:
        mine, theirs = _spaces(one.layers[name]), _spaces(other.layers[name])
        ranks = (mine.rank, theirs.rank)
        if min(ranks) == 0:
            continue
        smaller += min(ranks)
        out += float((mine.out.T @ product(mine.up, theirs.up) @ theirs.out).square().sum())
        inn += float((mine.inn.T @ product(mine.down.T, theirs.down.T) @ theirs.inn).square().sum())
        chance += min(ranks) * max(ranks) / min(one.layers[name].matrix_shape)
    count = max(smaller, 1)
    return Pair(
        first, second, cosine, out / count, inn / count, min(chance / count, 1.0), len(shared), (lengths[0], lengths[1])
    )


def _spaces(layer: LowRank) -> _Spaces:
    up, down = layer.factors()
    gram_up, gram_down = square(up), square(down.T)
    return _Spaces(up, down, _basis(gram_up, gram_down), _basis(gram_down, gram_up))


def _basis(own: Tensor, other: Tensor) -> Tensor:
    """X [R, k] such that the factor with Gram matrix `own`, times X, is an orthonormal basis of its side of ΔW."""
    values, vectors = torch.linalg.eigh(other)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    squares, directions = torch.linalg.eigh(root @ own @ root)
    kept = squares > NEGLIGIBLE**2 * squares.max() if len(squares) else squares > 0
    basis: Tensor = root @ directions[:, kept] / squares[kept].sqrt()
    return basis


def _load(workspace: Workspace | None, reference: str, base: str | None) -> Adapter:
    located = find(reference, workspace)
    if located.record is None:
        return load_path(located.path, base=base)
    return load_version(located.path, located.record, base=base)
