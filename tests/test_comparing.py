"""Two adapters side by side, against their dense matrices in float64."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from lorahub.algebra.decompose import spectrum_of_products
from lorahub.algebra.geometry import layer_products
from lorahub.algebra.lowrank import LowRank
from lorahub.comparing import RankUse, compare
from lorahub.errors import BaseMismatchError, VerificationError
from tests.algebra.making import adapter, random_layer, with_spectrum


def layer_of(sigma: list[float], *, seed: int = 0) -> LowRank:
    return with_spectrum(sigma, (90, 70), seed=seed, form="mixed")


def dense_use(layer: LowRank) -> tuple[int, int]:
    """(numerical rank, singular values that hold 99 % of the squared norm) by way of ΔW."""
    dense = layer.dense(torch.float64).flatten(1)
    squares = torch.linalg.svdvals(dense).square()
    share = torch.cumsum(squares, 0) / squares.sum()
    return int(torch.linalg.matrix_rank(dense)), int((share < 0.99).sum()) + 1


def test_every_number_is_that_of_the_dense_matrices() -> None:
    one = adapter(
        "one", a=random_layer((50, 40), 6, seed=1, dtype=torch.float16), b=random_layer((30, 20, 3, 3), 5, seed=2)
    )
    other = adapter("other", a=random_layer((50, 40), 9, seed=3), c=random_layer((20, 20), 4, seed=4))
    found = compare(one, other)
    dense = [{name: layer.dense(torch.float64) for name, layer in side.layers.items()} for side in (one, other)]
    norms = [math.sqrt(sum(float(matrix.square().sum()) for matrix in side.values())) for side in dense]
    inner = float((dense[0]["unet.a"] * dense[1]["unet.a"]).sum())
    assert found.norms == pytest.approx(norms, rel=1e-6)
    assert found.cosine == pytest.approx(inner / (norms[0] * norms[1]), abs=1e-7)
    assert found.distance == pytest.approx(math.sqrt(norms[0] ** 2 + norms[1] ** 2 - 2 * inner), rel=1e-6)
    assert (found.only_in_first, found.only_in_second) == (("unet.b",), ("unet.c",))
    assert list(found.layers) == ["unet.a", "unet.b", "unet.c"]
    assert found.layers["unet.c"].norms == (0.0, pytest.approx(float(dense[1]["unet.c"].norm()), rel=1e-6))
    assert found.layers["unet.c"].cosine is None
    for use, side in zip(found.rank_use, (one, other), strict=True):
        ranks = [dense_use(layer) for layer in side.layers.values()]
        stored = sum(layer.rank for layer in side.layers.values()) / 2
        assert use == RankUse(stored, sum(used for used, _ in ranks) / 2, sum(enough for _, enough in ranks) / 2, 0)


@pytest.mark.parametrize(
    ("sigma", "used", "enough"),
    [
        pytest.param([1.0] * 10, 10, 10, id="flat"),
        pytest.param([3.0, 2.0, 1.0, 0.01], 4, 3, id="decaying"),
        pytest.param([8.0**-power for power in range(12)], 12, 2, id="steep"),
        pytest.param([], 0, 0, id="zero"),
    ],
)
def test_rank_use(sigma: list[float], used: int, enough: int) -> None:
    layer = layer_of(sigma or [1.0])
    if not sigma:
        layer = LowRank.of(0 * layer.blocks[0].up, layer.blocks[0].down)
    both = compare(adapter("one", a=layer), adapter("other", a=random_layer((90, 70), 3)))
    assert both.rank_use[0] == RankUse(max(len(sigma), 1), used, enough, int(not used))
    assert both.rank_use[1] == RankUse(3, 3, 3, 0)


def test_columns_that_repeat_others_use_no_rank() -> None:
    block = layer_of([2.0, 1.0]).blocks[0]
    twice = LowRank.of(torch.cat([block.up, block.up], dim=1), torch.cat([block.down, -0.5 * block.down]))
    assert compare(adapter("one", a=twice), adapter("other", a=twice)).rank_use == (RankUse(4, 2, 2, 0),) * 2


def test_products_show_a_spectrum_or_say_that_they_do_not() -> None:
    clear, steep = layer_of([4.0, 2.0, 1.0, 0.25], seed=1), layer_of([1.0, 1e-3, 1e-6], seed=2)
    products = layer_products([clear, steep, 0 * steep])
    sigma = spectrum_of_products(*products.of(0), products.dtype)
    assert products.dtype == torch.float32
    assert sigma is not None
    torch.testing.assert_close(sigma, torch.tensor([4.0, 2.0, 1.0, 0.25], dtype=torch.float64), rtol=1e-5, atol=0)
    assert spectrum_of_products(*products.of(1), products.dtype) is None
    assert spectrum_of_products(*products.of(2), products.dtype) is None


def test_scales_of_either_sign_count() -> None:
    layer = layer_of([3.0, 1.0])
    products = layer_products([layer - 0.5 * random_layer((90, 70), 2, seed=5), -2.0 * layer])
    sigma = spectrum_of_products(*products.of(1), products.dtype)
    assert sigma is not None
    torch.testing.assert_close(sigma, torch.tensor([6.0, 2.0], dtype=torch.float64), rtol=1e-5, atol=0)


def test_an_adapter_without_layers_uses_no_rank() -> None:
    bare = dataclasses.replace(adapter("bare"), offsets={"unet.bias": torch.tensor([3.0, 4.0])})
    found = compare(bare, adapter("other", a=random_layer((9, 7), 2)))
    assert found.norms[0] == 5.0
    assert found.rank_use[0] == RankUse(0, 0, 0, 0)


def test_progress_is_that_of_the_layers() -> None:
    one, other = (
        adapter("one", a=random_layer((9, 7), 2), b=random_layer((9, 7), 2)),
        adapter("other", c=random_layer((5, 4), 1)),
    )
    seen: list[tuple[int, int]] = []
    compare(one, other, progress=lambda done, count: seen.append((done, count)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_what_cannot_be_compared_is_named() -> None:
    one = adapter("one", a=random_layer((9, 7), 2))
    with pytest.raises(BaseMismatchError, match="different spaces"):
        compare(one, adapter("other", base="sdxl", a=random_layer((9, 7), 2)))
    with pytest.raises(BaseMismatchError, match=r"unet\.a has different shapes"):
        compare(one, adapter("other", a=random_layer((9, 8), 2)))
    with pytest.raises(VerificationError, match=r"unet\.a: the weights hold NaN or Inf"):
        compare(one, adapter("other", a=LowRank.of(torch.full((9, 2), torch.nan), torch.ones(2, 7))))
