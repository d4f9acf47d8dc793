"""The three routes of decompose: each is taken where it should be, and each is right where it is taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorahub.algebra import LowRank, decompose as module
from lorahub.algebra.decompose import Decomposition, decompose

from .making import dense, random_layer, reloaded, with_spectrum

DECAY = [i**-1.0 for i in range(1, 33)]


@pytest.fixture
def routes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the routes that gave an answer, in order."""
    taken: list[str] = []
    grams, qr = module._from_grams, module._from_qr

    def spied_grams(layer, choose, dtype, device):  # type: ignore[no-untyped-def]
        found = grams(layer, choose, dtype, device)
        taken.append(f"{str(dtype).removeprefix('torch.')} {'taken' if found else 'refused'}")
        return found

    def spied_qr(layer, choose, device):  # type: ignore[no-untyped-def]
        taken.append("qr taken")
        return qr(layer, choose, device)

    monkeypatch.setattr(module, "_from_grams", spied_grams)
    monkeypatch.setattr(module, "_from_qr", spied_qr)
    return taken


def check(found: Decomposition, layer: LowRank, rank: int, tolerance: float) -> None:
    """The factors are the best approximation, balanced, and the singular values are those of the dense matrix."""
    matrix = dense(layer)
    u, sigma, vh = torch.linalg.svd(matrix, full_matrices=False)
    assert found.rank == rank
    top = float(sigma[0])
    assert float((found.sigma[:rank] - sigma[:rank]).abs().max()) <= tolerance * top
    up, down = found.factors()
    assert (up.shape, down.shape) == ((matrix.shape[0], rank), (rank, matrix.shape[1]))
    best = (u[:, :rank] * sigma[:rank]) @ vh[:rank]
    assert float((up.double() @ down.double() - best).norm()) <= tolerance * top
    torch.testing.assert_close(up.double().norm(dim=0), found.sigma[:rank].sqrt(), rtol=1e-3, atol=0)
    torch.testing.assert_close(down.double().norm(dim=1), found.sigma[:rank].sqrt(), rtol=1e-3, atol=0)


def test_well_conditioned_factors_take_float32_gram_matrices(routes: list[str]) -> None:
    layer = with_spectrum(DECAY, (300, 200), form="mixed", dtype=torch.float16)
    check(decompose(layer, lambda sigma: 8), layer, 8, 1e-5)
    assert routes == ["float32 taken"]


def test_float64_results_never_go_through_float32(routes: list[str]) -> None:
    layer = with_spectrum(DECAY, (300, 200), form="mixed")
    check(decompose(layer, lambda sigma: 8, exact=True), layer, 8, 1e-12)
    assert routes == ["float64 taken"]


@pytest.mark.parametrize("form", ["balanced", "up", "down", "mixed"])
def test_small_kept_singular_values_take_float64_gram_matrices(routes: list[str], form: str) -> None:
    layer = with_spectrum([10 ** (-i / 8) for i in range(33)], (300, 200), form=form)  # to 1e-4
    check(decompose(layer, lambda sigma: 30), layer, 30, 1e-6)
    assert routes == ["float32 refused", "float64 taken"]


@pytest.mark.parametrize("form", ["balanced", "up", "down", "mixed"])
def test_tiny_left_out_singular_values_are_not_reported_as_noise(routes: list[str], form: str) -> None:
    layer = with_spectrum([1.0] * 8 + [1e-4] * 8, (300, 200), form=form)
    found = decompose(layer, lambda sigma: 8)
    assert float(found.sigma[8:].norm()) == pytest.approx(8**0.5 * 1e-4, rel=1e-4)
    assert routes == ["float32 refused", "float64 taken"]


@pytest.mark.parametrize("form", ["balanced", "up", "down", "mixed"])
def test_spectra_beyond_the_squares_of_float64_take_qr(routes: list[str], form: str) -> None:
    layer = with_spectrum([10 ** (-i / 2) for i in range(20)], (300, 200), form=form)  # to 1e-9.5
    found = decompose(layer, lambda sigma: 16)
    check(found, layer, 16, 1e-12)
    assert float(found.sigma[16:].norm()) == pytest.approx(1e-8 * 1.1**0.5, rel=1e-2)
    assert routes[-1] == "qr taken"
    assert "float64 refused" in routes


def test_duplicated_columns_take_qr_which_drops_the_noise(routes: list[str]) -> None:
    small = random_layer((300, 200), 4)
    layer = small + reloaded(small) + reloaded(small)
    found = decompose(layer, lambda sigma: min(8, len(sigma)))
    assert len(found.sigma) == 4
    check(found, layer, 4, 1e-12)
    assert routes == ["float32 refused", "float64 refused", "qr taken"]


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (12, 12), (5, 2, 3, 3)])
def test_more_columns_than_the_matrix_can_have_take_qr(routes: list[str], shape: tuple[int, ...]) -> None:
    layer = random_layer(shape, 20)
    check(decompose(layer, lambda sigma: 4), layer, 4, 1e-12)
    assert routes == ["qr taken"]


def test_factors_beyond_the_squares_of_float32_take_float64(routes: list[str]) -> None:
    layer = with_spectrum(DECAY, (300, 200), form="mixed", dtype=torch.float32)
    block = layer.blocks[0]
    stretched = LowRank.of(block.up * 1e25, block.down * 1e-25)
    found = decompose(stretched, lambda sigma: 8)
    torch.testing.assert_close(found.sigma[:8], torch.linalg.svdvals(dense(layer))[:8], rtol=1e-5, atol=0)
    assert routes == ["float32 refused", "float64 taken"]


def test_keeping_nothing_is_no_reason_for_another_route(routes: list[str]) -> None:
    layer = with_spectrum(DECAY, (300, 200), form="mixed")
    found = decompose(layer, lambda sigma: 0)
    up, down = found.factors()
    assert (up.shape, down.shape) == ((300, 0), (0, 200))
    assert routes == ["float32 taken"]


def test_all_zero_factors_have_no_singular_values() -> None:
    layer = LowRank.of(torch.zeros(30, 4), torch.ones(4, 20))

    def choose(sigma: Tensor) -> int:
        return len(sigma)

    assert decompose(layer, choose).sigma.tolist() == []
    assert decompose(layer, choose).rank == 0
