"""The approximation of a dense matrix against the full SVD in float64: the error, and what is said of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorahub.algebra.dense import leading, singular_values
from lorahub.algebra.ranks import RankRule, energy, fixed, relative
from lorahub.errors import VerificationError


def matrix(rows: int, columns: int, decay: float, noise: float) -> Tensor:
    """Singular values i^-decay in random directions, and Gaussian noise of `noise` times its norm; float32."""
    random = torch.Generator().manual_seed(rows + columns)
    count = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, count, generator=random, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, count, generator=random, dtype=torch.float64)).Q
    clean = left * torch.arange(1, count + 1, dtype=torch.float64) ** -decay @ right.T
    dirt = torch.randn(rows, columns, generator=random, dtype=torch.float64)
    return (clean + noise * dirt * torch.linalg.matrix_norm(clean) / (rows * columns) ** 0.5).float()


@pytest.mark.parametrize("shape", [(400, 300), (300, 700), (40, 200)], ids=str)
@pytest.mark.parametrize(("decay", "noise"), [(0.3, 0.0), (1.0, 0.1), (1.0, 1.0), (2.0, 0.05)])
@pytest.mark.parametrize("rule", [fixed(4), fixed(24), fixed(1000), energy(0.9), relative(0.05)], ids=str)
def test_error(shape: tuple[int, int], decay: float, noise: float, rule: RankRule) -> None:
    assert rule.per_layer is not None
    dense = matrix(*shape, decay, noise)
    exact = torch.linalg.svdvals(dense.double())
    found = leading(dense, rule.per_layer)
    rank = rule.per_layer(exact)
    assert (found.up.shape, found.down.shape) == ((shape[0], rank), (rank, shape[1]))
    best = float(exact[rank:].square().sum().sqrt())
    real = float(torch.linalg.matrix_norm(dense.double() - found.up.double() @ found.down.double()))
    assert real <= 1.002 * best + 1e-6 * found.norm
    assert real == pytest.approx(found.error, rel=1e-3, abs=1e-6 * found.norm)
    assert found.norm == pytest.approx(float(torch.linalg.matrix_norm(dense.double())), rel=1e-9)
    sizes = [found.up.double().square().sum(0), found.down.double().square().sum(1)]
    for size in sizes:
        assert torch.allclose(size, found.sigma, rtol=1e-5)


@pytest.mark.parametrize("shape", [(120, 90), (90, 120)])
def test_singular_values(shape: tuple[int, int]) -> None:
    dense = matrix(*shape, 1.0, 0.0)
    assert torch.allclose(singular_values(dense), torch.linalg.svdvals(dense.double()), rtol=1e-6)


@pytest.mark.parametrize("rank", [4, 32])
def test_matrices_of_low_rank_get_no_more_than_that(rank: int) -> None:
    random = torch.Generator().manual_seed(0)
    dense = torch.randn(500, 3, generator=random) @ torch.randn(3, 400, generator=random)
    found = leading(dense, fixed(rank).per_layer or len)
    assert len(found.sigma) == 3
    assert found.error < 1e-6 * found.norm
    assert len(singular_values(dense)) == 3


def test_zero_has_rank_zero() -> None:
    for size in (10, 500):
        found = leading(torch.zeros(size, size), fixed(8).per_layer or len)
        assert (found.up.shape, found.down.shape) == ((size, 0), (0, size))
        assert (found.norm, found.error) == (0, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(value: float) -> None:
    dense = torch.ones(300, 300)
    dense[7, 5] = value
    with pytest.raises(VerificationError, match="NaN or Inf"):
        leading(dense, fixed(8).per_layer or len)
