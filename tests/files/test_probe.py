"""The distance between what was asked for and what a file holds, against dense matrices."""

from __future__ import annotations

import math

import pytest
import torch

from lorahub.algebra import Adapter, LowRank
from lorahub.files.probe import distance, identical

NAME = "unet.conv_in"


def holding(layer: LowRank) -> Adapter:
    return Adapter("sd15", {NAME: layer})


def random(seed: int, rank: int, scale: float = 1.0, dtype: torch.dtype = torch.float16) -> LowRank:
    drawn = torch.Generator().manual_seed(seed)
    up, down = torch.randn(300, rank, generator=drawn), torch.randn(rank, 200, generator=drawn)
    return LowRank.of(up.to(dtype), down.to(dtype), scale=scale)


def joined(layer: LowRank) -> LowRank:
    """One block in half precision, as a file holds it."""
    up, down = layer.factors()
    return LowRank.of(up.half(), down.half())


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.8, 1.0), (1.0, -0.3)])
@pytest.mark.parametrize("ranks", [(8, 4), (3, 5)])  # the second cannot be compared eight bytes at a time
def test_concatenated_blocks(scales: tuple[float, float], ranks: tuple[int, int]) -> None:
    asked = random(1, ranks[0], scales[0]) + random(2, ranks[1], scales[1])
    found = distance(holding(asked), holding(joined(asked)))
    dense = asked.dense(torch.float64)
    gap = float((dense - joined(asked).dense(torch.float64)).norm())
    assert found.norm == pytest.approx(float(dense.norm()), rel=0.3)
    assert (found.difference == 0) == (scales == (1.0, 1.0))
    if gap > 1e-9:
        assert found.difference == pytest.approx(gap, rel=0.5)


@pytest.mark.parametrize("column", [0, 7, 8, 11])
def test_one_changed_number_is_seen_in_every_block(column: int) -> None:
    asked = random(1, 8) + random(2, 4)
    file = joined(asked)
    file.blocks[0].up[123, column] += 1.0
    gap = float((asked.dense(torch.float64) - file.dense(torch.float64)).norm())
    found = distance(holding(asked), holding(file))
    assert found.difference == pytest.approx(gap, rel=0.7)
    assert found.worst_layer == NAME
    assert not identical(holding(asked), holding(file))


def test_a_block_that_is_missing_and_one_that_is_too_many() -> None:
    one, other = random(1, 8), random(2, 4)
    size = float(other.dense().norm())
    assert distance(holding(one + other), holding(one)).difference == pytest.approx(size, rel=0.5)
    assert distance(holding(one), holding(one + other)).difference == pytest.approx(size, rel=0.5)
    assert distance(holding(one), Adapter("sd15", {})).relative == pytest.approx(1.0)
    assert distance(Adapter("sd15", {}), holding(one)).relative == math.inf


def test_factors_that_lie_transposed() -> None:
    """As those of an embedding do."""
    asked = random(1, 8)
    (block,) = asked.blocks
    file = LowRank.of(block.up.T.contiguous().T, block.down.T.contiguous().T)
    assert identical(holding(asked), holding(file))
    assert distance(holding(asked), holding(file)).difference == 0
    file.blocks[0].up[123, 4] += 1.0
    gap = float((asked.dense(torch.float64) - file.dense(torch.float64)).norm())
    assert distance(holding(asked), holding(file)).difference == pytest.approx(gap, rel=0.7)


def test_not_a_number_is_no_distance() -> None:
    asked = random(1, 8)
    file = joined(asked)
    file.blocks[0].down[2, 3] = math.nan
    assert math.isnan(distance(holding(asked), holding(file)).difference)
