"""Fused and split layers: both directions are exact, and a rank is not paid twice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorahub.algebra import LowRank
from lorahub.bases.model import Span
from lorahub.formats.rows import join, split

COLUMNS = 7
ROWS = {"q": 4, "k": 3, "v": 4}
QKV = (Span("q", 0, 4), Span("k", 0, 3), Span("v", 0, 4))
SWAPPED = (Span("q", 2, 4), Span("q", 0, 2))
SHAPES = {name: (rows, COLUMNS) for name, rows in ROWS.items()}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(name: str, rank: int, *, down: Tensor | None = None, scale: float = 1.0, seed: int = 0) -> LowRank:
    found = random(rank, COLUMNS, seed=seed + 1) if down is None else down
    return LowRank.of(random(ROWS[name], rank, seed=seed), found, scale=scale)


def joined(spans: tuple[Span, ...] | None, layers: dict[str, LowRank], name: str = "qkv") -> tuple[Tensor, int]:
    """ΔW of the file layer, and its rank, with everything that it promised checked."""
    piece = join(spans, name, layers, SHAPES)
    up, down = piece.make(torch.float64)
    assert up.shape == (piece.shape[0], piece.rank)
    assert down.shape == (piece.rank, piece.shape[1])
    return up @ down, piece.rank


def test_splitting_gives_each_layer_its_rows_without_a_copy() -> None:
    up = random(11, 2)
    parts = split(QKV, up, ROWS)
    assert [name for name, _ in parts] == ["q", "k", "v"]
    assert torch.equal(torch.cat([rows for _, rows in parts]), up)
    assert all(rows.data_ptr() >= up.data_ptr() for _, rows in parts)
    parts[0][1][0, 0] = 42.0
    assert up[0, 0] == 42


def test_splitting_puts_swapped_halves_in_their_places() -> None:
    up = random(4, 2)
    ((name, rows),) = split(SWAPPED, up, ROWS)
    assert name == "q"
    assert torch.equal(rows, torch.cat([up[2:], up[:2]]))


def test_rows_that_no_span_covers_are_zero() -> None:
    ((_, rows),) = split((Span("q", 1, 3),), random(2, 2), ROWS)
    assert torch.equal(rows, torch.cat([torch.zeros(1, 2), random(2, 2), torch.zeros(1, 2)]).double())


def test_splitting_works_on_vectors_too() -> None:
    bias = random(11)
    assert torch.equal(torch.cat([rows for _, rows in split(QKV, bias, ROWS)]), bias)
    ((_, rows),) = split(SWAPPED, random(4), ROWS)
    assert torch.equal(rows, torch.cat([random(4)[2:], random(4)[:2]]))


def test_joining_what_was_split_keeps_the_rank() -> None:
    up, down = random(11, 2), random(2, COLUMNS)
    layers = {name: LowRank.of(rows, down) for name, rows in split(QKV, up, ROWS)}
    found, rank = joined(QKV, layers)
    assert rank == 2
    assert torch.equal(found, up @ down)


def test_a_shared_down_may_lie_in_different_memory_and_have_different_scales() -> None:
    down = random(2, COLUMNS)
    layers = {
        name: layer(name, 2, down=down.clone(), scale=scale, seed=seed)
        for seed, (name, scale) in enumerate({"q": 1.0, "k": -0.5, "v": 3.0}.items())
    }
    found, rank = joined(QKV, layers)
    assert rank == 2
    torch.testing.assert_close(found, torch.cat([layers[name].dense(torch.float64) for name in "qkv"]))


def test_downs_that_differ_make_a_block_diagonal_up_whose_ranks_add() -> None:
    layers = {"q": layer("q", 2, seed=1), "k": layer("k", 1, seed=3), "v": layer("v", 3, scale=2.0, seed=5)}
    found, rank = joined(QKV, layers)
    assert rank == 6
    torch.testing.assert_close(found, torch.cat([layers[name].dense(torch.float64) for name in "qkv"]))
    up, _ = join(QKV, "qkv", layers, SHAPES).make(torch.float64)
    assert int((up != 0).sum()) == 4 * 2 + 3 * 1 + 4 * 3


def test_sums_of_fused_files_are_joined_at_the_sum_of_their_ranks() -> None:
    """Two blocks each, with the same downs in all three: rank 5, not 15."""
    downs = random(2, COLUMNS, seed=1), random(3, COLUMNS, seed=2)
    layers = {
        name: layer(name, 2, down=downs[0], seed=seed) + layer(name, 3, down=downs[1], scale=0.5, seed=seed + 9)
        for seed, name in enumerate("qkv")
    }
    found, rank = joined(QKV, layers)
    assert rank == 5
    torch.testing.assert_close(found, torch.cat([layers[name].dense(torch.float64) for name in "qkv"]))


@pytest.mark.parametrize("present", ["q", "v", "qv", "kv"])
def test_layers_that_are_absent_are_rows_of_zeros(present: str) -> None:
    layers = {name: layer(name, 2, seed=seed) for seed, name in enumerate(present)}
    found, rank = joined(QKV, layers)
    assert rank == 2 * len(present)
    parts = [layers[n].dense(torch.float64) if n in layers else torch.zeros(ROWS[n], COLUMNS) for n in "qkv"]
    torch.testing.assert_close(found, torch.cat([part.double() for part in parts]))


def test_swapped_halves_are_swapped_back() -> None:
    layers = {"q": layer("q", 3)}
    found, rank = joined(SWAPPED, layers, "q_swapped")
    dense = layers["q"].dense(torch.float64)
    assert rank == 3
    torch.testing.assert_close(found, torch.cat([dense[2:], dense[:2]]))


def test_a_layer_that_is_not_fused_is_handed_on_as_it_is() -> None:
    """Also under another name, as every layer of SDXL has: no copy, no rounding."""
    layers = {"q": layer("q", 3)}
    for spans, name in ((None, "q"), ((Span("q", 0, 4),), "other")):
        piece = join(spans, name, layers, SHAPES)
        assert (piece.name, piece.shape, piece.rank, piece.stored_dtype) == (name, (4, COLUMNS), 3, torch.float64)
        up, down = piece.make(torch.float64)
        assert up.data_ptr() == layers["q"].blocks[0].up.data_ptr()
        assert down.data_ptr() == layers["q"].blocks[0].down.data_ptr()
