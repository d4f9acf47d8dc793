"""truncate attains the Eckart-Young error where it is hard: steep spectra, lost ranks, near-cancellation, odd shapes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from lorahub.algebra import Adapter, LowRank, fixed, truncate

from .making import best_error, dense, orthonormal, random_layer, reloaded, single, with_spectrum

STEEP = [10 ** (-6 * i / 23) for i in range(24)]  # down to 1e-6 of the largest
FLAT = [1.0] * 24
CLIFF = [1.0] * 6 + [1e-6] * 18
SHAPES = [(160, 120), (120, 160), (600, 25), (25, 600), (30, 12, 3, 3)]


def excess(whole: Adapter, rank: int, dtype: torch.dtype = torch.float64) -> float:
    """By what share of the best error the error is larger; zero errors are judged against the norm (1e-12 of it)."""
    layer = whole.layers["unet.layer"]
    matrix = dense(layer)
    short = truncate(whole, fixed(rank), dtype=dtype)
    kept = short.layers.get("unet.layer", LowRank(layer.shape, ()))
    assert kept.rank <= rank
    made, best = float((matrix - dense(kept)).norm()), best_error(matrix, rank)
    floor = 1e-12 * float(matrix.norm())
    assert short.error == pytest.approx(best, rel=1e-6, abs=floor)
    return (
        max(made - floor - best, 0.0) / best if best > floor else max(made - floor, 0.0) / (float(matrix.norm()) or 1.0)
    )


@pytest.mark.parametrize("form", ["balanced", "up", "down", "mixed"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sigma", [STEEP, FLAT, CLIFF], ids=["steep", "flat", "cliff"])
def test_any_spectrum_form_and_shape(sigma: list[float], shape: tuple[int, ...], form: str) -> None:
    whole = single(with_spectrum(sigma, shape, form=form))
    for rank in (1, 6, 12, 23, 24):
        assert excess(whole, rank) < 1e-9


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1e3, 1e12])
def test_any_size(size: float) -> None:
    assert excess(single(with_spectrum(STEEP, (160, 120), form="mixed") * size), 12) < 1e-9


def lopsided() -> LowRank:
    """Columns of very different lengths in opposite order, so that neither factor alone shows what matters."""
    up = orthonormal(160, 24, 1) * torch.logspace(0, -5, 24, dtype=torch.float64)
    down = (orthonormal(120, 24, 2) * torch.logspace(-6, 0, 24, dtype=torch.float64)).T
    return LowRank.of(up, down)


def nearly_parallel() -> LowRank:
    """Columns that differ by 1e-5 of their length."""
    common = random_layer((160, 120), 1, seed=1).blocks[0]
    noise = random_layer((160, 120), 8, seed=2).blocks[0]
    return LowRank.of(common.up + 1e-5 * noise.up, common.down + 1e-5 * noise.down)


def padded() -> LowRank:
    """Rank 4 stored in 64 columns, 40 of them zero, the rest dependent."""
    small, mix = random_layer((160, 120), 4).blocks[0], orthonormal(24, 24, 5)[:4]
    up = torch.cat([small.up @ mix, torch.zeros(160, 40, dtype=torch.float64)], dim=1)
    return LowRank.of(up, torch.cat([mix.T @ small.down, torch.ones(40, 120, dtype=torch.float64)]))


def cancelling(leftover: float) -> LowRank:
    a = with_spectrum(STEEP[:12], (160, 120), form="mixed")
    return a - (1 + leftover) * reloaded(a)


def covered() -> LowRank:
    """a - a + 1e-3 b, with the a's from two files."""
    a = with_spectrum([i**-1.0 for i in range(1, 17)], (160, 120), seed=1, form="mixed")
    return a - reloaded(a) + 1e-3 * with_spectrum(STEEP[:12], (160, 120), seed=9, form="mixed")


@pytest.mark.parametrize(
    "make",
    [
        lopsided,
        nearly_parallel,
        padded,
        covered,
        lambda: cancelling(1e-3),
        lambda: cancelling(-1e-1),
        lambda: random_layer((160, 120), 4) + random_layer((160, 120), 4) * -3.0,
        lambda: random_layer((160, 120), 1),
        lambda: random_layer((1, 120), 1),
        lambda: random_layer((160, 1), 5),
        lambda: random_layer((40, 30), 200),
        lambda: random_layer((40, 30), 30),
        lambda: LowRank.of(torch.zeros(160, 8), torch.randn(8, 120)),
        lambda: LowRank.of(torch.randn(160, 8), torch.zeros(8, 120)),
        lambda: LowRank((160, 120), ()),
    ],
    ids=[
        "lopsided", "nearly parallel", "padded", "covered", "cancelling 1e-3", "cancelling 1e-1", "duplicate seeds",
        "rank 1", "one row", "one column", "R > m, n", "R = n", "zero up", "zero down", "no blocks",
    ],
)  # fmt: skip
def test_degenerate_layers(make: Callable[[], LowRank]) -> None:
    whole = single(make())
    for rank in (1, 3, 4, 8, 64):
        assert excess(whole, rank) < 1e-9


def test_two_copies_subtracted_leave_nothing() -> None:
    a = with_spectrum(STEEP, (160, 120), form="mixed", dtype=torch.float16)
    assert not truncate(single(a - reloaded(a)), fixed(4), dtype=torch.float64).layers


def test_many_inputs_and_shared_layers() -> None:
    total = LowRank((160, 120), ())
    for seed in range(12):
        total = total + (-1) ** seed * 0.3 * random_layer((160, 120), 1 + seed % 5, seed=seed, dtype=torch.float16)
    for rank in (1, 16, 33):
        assert excess(single(total), rank) < 1e-9


@pytest.mark.parametrize("power", [0.6, 0.9, 1.2, 1.6])
@pytest.mark.parametrize("shape", [(640, 320), (320, 80, 3, 3)], ids=str)
def test_real_spectra_in_half_precision_lose_nothing_to_float32_products(power: float, shape: tuple[int, ...]) -> None:
    """What is lost before rounding; the small matrices are applied to the factors in float64 to leave rounding out."""
    from lorahub.algebra.decompose import decompose

    sigma = [i**-power for i in range(1, 33)]
    layer = 0.8 * with_spectrum(sigma, shape, seed=1, form="mixed", dtype=torch.float16) + with_spectrum(
        sigma, shape, seed=7, form="mixed", dtype=torch.float16
    )
    matrix = dense(layer)
    for rank in (8, 32, 60):
        found = decompose(layer, lambda values, rank=rank: rank)
        kept = (found.left.double() @ found.up_mix) @ (found.down_mix @ found.right.double())
        best = best_error(matrix, rank)
        assert (float((matrix - kept).norm()) - best) / best < 1e-9
        assert float(found.sigma[rank:].norm()) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("power", [0.6, 1.2])
def test_rounding_to_float32_and_float16_adds_what_the_dtype_must(power: float) -> None:
    whole = single(with_spectrum([i**-power for i in range(1, 65)], (640, 320), form="mixed", dtype=torch.float16))
    assert excess(whole, 16, torch.float32) < 1e-9
    assert excess(whole, 16, torch.float16) < 1e-5


def test_a_sum_of_squares_of_layers_is_the_error_of_the_adapter() -> None:
    layers = {f"unet.{i}": with_spectrum(STEEP, (60 + i, 40), seed=i, form="mixed") for i in range(5)}
    short = truncate(Adapter("sd15", layers), fixed(6), dtype=torch.float64)
    expected = math.sqrt(sum(best_error(dense(layer), 6) ** 2 for layer in layers.values()))
    assert short.error == pytest.approx(expected, rel=1e-9)
