"""Subspace methods against straightforward dense implementations, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorahub.algebra import Adapter, fixed
from lorahub.merge import merge
from tests.algebra.making import adapter, best_error, dense, random_layer
from tests.merge import twins

RANKS = (4, 5, 6)
WEIGHTS = [0.8, 1.0, -0.3]


def three(shape: tuple[int, ...] = (40, 33)) -> list[Adapter]:
    return [adapter(f"a{rank}", layer=random_layer(shape, rank, seed=rank)) for rank in RANKS]


def matrices(adapters: list[Adapter], weights: list[float]) -> list[Tensor]:
    return [weight * dense(each.layers["unet.layer"]) for each, weight in zip(adapters, weights, strict=True)]


def check(method: str, settings: dict[str, object], expected: Tensor, adapters: list[Adapter], rank: int) -> None:
    """The merged layer, and what is kept of it at a lower rank, at both precisions."""
    scale = float(expected.norm())
    whole = merge(adapters, WEIGHTS, method, settings, None, dtype=torch.float64)
    assert float((dense(whole.layers["unet.layer"]) - expected).norm()) < 1e-7 * scale
    assert whole.layers["unet.layer"].rank == rank
    assert whole.relative_error < 1e-7
    for dtype, allowed in ((torch.float64, 1e-7), (torch.float32, 3e-4)):
        made = merge(adapters, WEIGHTS, method, settings, fixed(6), dtype=dtype)
        error = float((dense(made.layers["unet.layer"]) - expected).norm())
        assert made.error == pytest.approx(error, abs=allowed * scale)
        assert error == pytest.approx(best_error(expected, 6), rel=1e-3)


@pytest.mark.parametrize("density", [0.2, 0.6, 1.0])
def test_knots_ties(density: float) -> None:
    basis, shares = twins.knots_basis(matrices(three(), WEIGHTS))
    expected = basis @ twins.elected([twins.trim(share, density) for share in shares], WEIGHTS)
    check("knots_ties", {"density": density}, expected, three(), 15)


def test_knots_dare_draws_in_the_joint_basis() -> None:
    basis, shares = twins.knots_basis(matrices(three(), WEIGHTS))
    made = dense(
        merge(three(), WEIGHTS, "knots_dare", {"density": 0.5}, None, dtype=torch.float64).layers["unet.layer"]
    )
    torch.testing.assert_close(basis @ (basis.T @ made), made)
    rows = basis.T @ made
    # Each number is the mean of the doubled numbers that were kept and share a sign: one of finitely many.
    options = [torch.zeros_like(rows)]
    for mask in range(1, 8):
        stack = torch.stack([2 * share * bool(mask & 1 << i) for i, share in enumerate(shares)])
        options.append(twins.elected([*stack], WEIGHTS))
    distance = (torch.stack(options) - rows).abs().min(0).values
    assert float(distance.max()) < 1e-9
    assert 0.5 < float((rows.abs() > 1e-9).double().mean()) < 0.95


def test_tsv() -> None:
    check("tsv", {}, twins.tsv(matrices(three(), WEIGHTS), RANKS), three(), 15)


def test_tsv_keeps_a_share_of_each() -> None:
    check("tsv", {"share": 0.5}, twins.tsv(matrices(three(), WEIGHTS), (2, 3, 3)), three(), 8)


def test_tsv_with_more_directions_than_the_layer_has() -> None:
    small = three((12, 33))
    check("tsv", {}, twins.tsv(matrices(small, WEIGHTS), RANKS), small, 12)


def test_tsv_of_an_adapter_and_itself_is_that_adapter() -> None:
    one = three()[0]
    same = adapter("copy", layer=random_layer((40, 33), 4, seed=4))
    made = merge([one, same], [1, 1], "tsv", {}, None, dtype=torch.float64)
    torch.testing.assert_close(dense(made.layers["unet.layer"]), dense(one.layers["unet.layer"]))


def test_iso_c() -> None:
    expected = twins.iso_c(matrices(three(), WEIGHTS), 15)
    whole = merge(three(), WEIGHTS, "iso_c", {}, None, dtype=torch.float64)
    torch.testing.assert_close(dense(whole.layers["unet.layer"]), expected, atol=1e-9, rtol=0)
    strongest = merge(three(), WEIGHTS, "iso_c", {}, fixed(6), dtype=torch.float64)
    u, sigma, vh = torch.linalg.svd(torch.stack(matrices(three(), WEIGHTS)).sum(0))
    torch.testing.assert_close(dense(strongest.layers["unet.layer"]), sigma[:15].mean() * u[:, :6] @ vh[:6])
    assert strongest.relative_error == pytest.approx((9 / 15) ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_iso_c_counts_the_directions_that_are_there(dtype: torch.dtype) -> None:
    """Two adapters that share all directions have half as many as their factors have columns."""
    one = three()[0]
    same = adapter("copy", layer=random_layer((40, 33), 4, seed=4))
    made = merge([one, same], [0.5, 0.5], "iso_c", {}, None, dtype=dtype)
    expected = twins.iso_c(matrices([one], [1.0]), 4)
    assert made.layers["unet.layer"].rank == 4
    torch.testing.assert_close(dense(made.layers["unet.layer"]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, 0.9), (0.0, 1.0), (2.0, 0.0)])
def test_slerp(weights: tuple[float, float]) -> None:
    a, b = three()[:2]
    expected = twins.slerp(*matrices([a, b], [1.0, 1.0]), weights[1] / sum(weights))
    made = merge([a, b], weights, "slerp", {}, None, dtype=torch.float64)
    torch.testing.assert_close(dense(made.layers["unet.layer"]), expected)
    assert merge([a, b], weights, "slerp", {}, fixed(2)).relative_error > 0


def test_slerp_is_straight_between_parallel_adapters_and_from_zero() -> None:
    a = three()[0]
    made = merge([a, 3 * a], [1, 1], "slerp", {}, None, dtype=torch.float64)
    torch.testing.assert_close(dense(made.layers["unet.layer"]), 2 * dense(a.layers["unet.layer"]))
    for zero in (adapter("empty"), adapter("zero", layer=random_layer((40, 33), 2, scale=0.0))):
        made = merge([a, zero], [3, 1], "slerp", {}, None, dtype=torch.float64)
        torch.testing.assert_close(dense(made.layers["unet.layer"]), 0.75 * dense(a.layers["unet.layer"]))


@pytest.mark.parametrize("method", ["slerp", "iso_c"])
def test_what_cancels_is_zero(method: str) -> None:
    a = three()[0]
    made = merge([a, adapter("less", layer=-1.0 * a.layers["unet.layer"])], [1, 1], method, {}, None)
    assert made.layers == {}
    assert made.error == 0
