"""LowRank against dense matrices: sums keep factors, scales are exact, bad shapes are refused."""

from __future__ import annotations

import pytest
import torch

from lorahub.algebra import Block, LowRank
from lorahub.errors import BaseMismatchError, VerificationError

from .making import dense, random_layer, reloaded

SHAPES = [(12, 7), (7, 12), (6, 5, 3, 3), (8, 8, 1, 1), (1, 9)]


@pytest.mark.parametrize("shape", SHAPES)
def test_operations_match_their_dense_twins(shape: tuple[int, ...]) -> None:
    a, b = random_layer(shape, 3, seed=1, scale=0.7), random_layer(shape, 2, seed=2, scale=-1.3)
    da, db = dense(a), dense(b)
    for result, expected in (
        (a + b, da + db),
        (a - b, da - db),
        (-a, -da),
        (a * 0.3, da * 0.3),
        (0.3 * a, da * 0.3),
        (a / 0.3, da / 0.3),
        (2 * (a - 0.5 * b) / 3 + b, 2 * (da - 0.5 * db) / 3 + db),
    ):
        assert result.shape == shape
        torch.testing.assert_close(dense(result), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
def test_factors_and_dense_give_the_matrix_with_scales_folded_in(shape: tuple[int, ...]) -> None:
    layer = random_layer(shape, 3, seed=1, scale=0.7) + random_layer(shape, 2, seed=2, scale=-1.3)
    up, down = layer.factors(torch.float64)
    assert up.shape == (layer.matrix_shape[0], 5)
    assert down.shape == (5, layer.matrix_shape[1])
    torch.testing.assert_close(up @ down, dense(layer), rtol=1e-13, atol=1e-13)
    assert layer.dense(torch.float64).shape == shape
    torch.testing.assert_close(layer.dense(torch.float64).reshape(up.shape[0], -1), dense(layer))
    assert (layer.up.dtype, layer.down.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close((layer.up @ layer.down).double(), dense(layer), rtol=1e-5, atol=1e-5)


def test_half_precision_blocks_mix_and_stay_as_they_are_stored() -> None:
    parts = [
        random_layer((9, 8), rank, seed=rank, dtype=dtype)
        for rank, dtype in ((1, torch.float16), (2, torch.bfloat16), (3, torch.float32), (4, torch.float64))
    ]
    total = parts[0] + 0.5 * parts[1] - parts[2] + 2 * parts[3]
    assert [block.up.dtype for block in total.blocks] == [part.blocks[0].up.dtype for part in parts]
    assert [block.up.data_ptr() for block in total.blocks] == [part.blocks[0].up.data_ptr() for part in parts]
    expected = dense(parts[0]) + 0.5 * dense(parts[1]) - dense(parts[2]) + 2 * dense(parts[3])
    torch.testing.assert_close(total.dense(torch.float64), expected, rtol=1e-14, atol=1e-14)
    assert total.rank == 10


def test_the_same_factors_are_gathered_so_a_minus_a_is_exactly_zero() -> None:
    a = random_layer((9, 8), 3, scale=0.1)
    assert (a + a).rank == 3
    assert (a + a).blocks[0].scale == 0.2
    assert (a - a).rank == 0
    assert not dense(a - a).any()
    assert (a + reloaded(a)).rank == 6  # equal numbers elsewhere in memory are other factors


def test_factors_that_come_twice_in_one_layer_count_twice() -> None:
    a, b = random_layer((9, 8), 3), random_layer((9, 8), 2, seed=1)
    twice = LowRank((9, 8), a.blocks + a.blocks)
    torch.testing.assert_close(dense(twice + b), 2 * dense(a) + dense(b))
    assert (twice - a - a).rank == 0


def test_a_view_that_starts_at_the_same_address_is_another_matrix() -> None:
    up, down = torch.ones(4, 2), torch.arange(6.0).reshape(2, 3)
    whole, part = LowRank.of(up, down), LowRank.of(up[:, :1], down[:1])
    assert (whole - part).rank == 3
    square = torch.arange(4.0).reshape(2, 2)
    upright, transposed = LowRank.of(square, square), LowRank.of(square, square.T)
    torch.testing.assert_close(dense(upright - transposed), (square @ square - square @ square.T).double())


def test_zero_times_a_layer_holds_no_factors() -> None:
    a = random_layer((9, 8), 3)
    assert (0 * a).rank == 0
    assert (0 * a).shape == (9, 8)
    up, down = (a * 0.0).factors()
    assert (up.shape, down.shape) == ((9, 0), (0, 8))
    assert dense(a + 0 * a).equal(dense(a))


def test_stored_dtype_tells_when_factors_can_be_handed_out() -> None:
    half = random_layer((9, 8), 3, dtype=torch.float16)
    assert half.stored_dtype == torch.float16
    assert half.factors(torch.float16)[0] is half.blocks[0].up or half.factors(torch.float16)[0].equal(
        half.blocks[0].up
    )
    assert (0.5 * half).stored_dtype is None
    assert (half + reloaded(half)).stored_dtype is None
    assert LowRank.of(torch.ones(2, 1), torch.ones(1, 2).half()).stored_dtype is None
    assert (half - half).stored_dtype is None


def test_layers_of_other_shapes_are_refused() -> None:
    with pytest.raises(BaseMismatchError, match=r"\[9, 8\] and one of \[8, 9\]"):
        random_layer((9, 8), 2) + random_layer((8, 9), 2)


@pytest.mark.parametrize(
    ("up", "down"),
    [((4, 2), (3, 5)), ((4, 2, 1), (2, 5)), ((4,), (2, 5)), ((4, 2), (2, 5, 1))],
)
def test_factors_that_are_no_matrices_of_one_rank_are_refused(up: tuple[int, ...], down: tuple[int, ...]) -> None:
    with pytest.raises(BaseMismatchError, match=r"\[out, rank\] and \[rank, in\]"):
        Block(torch.zeros(up), torch.zeros(down))


def test_factors_that_do_not_fit_the_layer_are_refused() -> None:
    with pytest.raises(BaseMismatchError, match=r"needs factors \[4, r\] and \[r, 27\]"):
        LowRank.of(torch.zeros(4, 2), torch.zeros(2, 26), shape=(4, 3, 3, 3))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf")])
def test_a_scale_that_is_no_number_is_refused(scale: float) -> None:
    with pytest.raises(VerificationError, match="finite"):
        random_layer((4, 4), 2) * scale


def test_dividing_by_zero_is_an_error() -> None:
    with pytest.raises(ZeroDivisionError):
        random_layer((4, 4), 2) / 0
