"""Elementwise methods against their plain definitions, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lorahub.algebra import Adapter, fixed
from lorahub.merge import merge, selection, sparsify
from lorahub.merge.methods import find
from tests.algebra.making import adapter, dense, generator, random_layer
from tests.merge import twins

FULL = fixed(1000)


def three() -> list[Adapter]:
    shape = (40, 33)
    return [adapter(f"a{seed}", layer=random_layer(shape, 5 + seed, seed=seed)) for seed in range(3)]


def result(adapters: list[Adapter], weights: list[float], method: str, **settings: object) -> Tensor:
    made = merge(adapters, weights, method, settings, FULL, dtype=torch.float64)
    return dense(made.layers["unet.layer"])


def matrices(adapters: list[Adapter], weights: list[float]) -> list[Tensor]:
    return [weight * dense(each.layers["unet.layer"]) for each, weight in zip(adapters, weights, strict=True)]


WEIGHTS = [0.8, 1.0, -0.3]


@pytest.mark.parametrize("density", [0.05, 0.3, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("elect", ["sum", "count"])
@pytest.mark.parametrize("divide", ["count", "weights", "none"])
def test_ties(density: float, elect: str, divide: str) -> None:
    sparse = [twins.trim(x, density) for x in matrices(three(), WEIGHTS)]
    expected = twins.elected(sparse, WEIGHTS, elect, divide)
    found = result(three(), WEIGHTS, "ties", density=density, elect=elect, divide=divide)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("divide", "by"), [("none", 1.0), ("count", 3.0), ("weights", 1.5)])
def test_magnitude_prune(divide: str, by: float) -> None:
    expected = sum(twins.trim(x, 0.3) for x in matrices(three(), WEIGHTS)) / by
    found = result(three(), WEIGHTS, "magnitude_prune", density=0.3, divide=divide)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("density", "gamma"), [(0.9, 0.01), (0.2, 0.1), (0.95, 0.3), (1.0, 0.2), (0.5, 0.0)])
def test_breadcrumbs(density: float, gamma: float) -> None:
    sparse = [twins.breadcrumbs(x, density, gamma) for x in matrices(three(), WEIGHTS)]
    found = result(three(), WEIGHTS, "breadcrumbs", density=density, gamma=gamma)
    torch.testing.assert_close(found, torch.stack(sparse).sum(0), atol=1e-10, rtol=0)
    found = result(three(), WEIGHTS, "breadcrumbs_ties", density=density, gamma=gamma)
    torch.testing.assert_close(found, twins.elected(sparse, WEIGHTS), atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["dare", "della"])
def test_drawn_methods_agree_on_what_was_drawn(kind: str) -> None:
    """The sparse adapters are what merging with all other weights zero leaves."""
    plain, elected = ("dare_linear", "dare_ties") if kind == "dare" else ("della_linear", "della")
    sparse = [result(three(), [float(i == j) for j in range(3)], plain, seed=5) for i in range(3)]
    weighted = [weight * x.where(x.abs() > 1e-9, 0.0) for weight, x in zip(WEIGHTS, sparse, strict=True)]
    torch.testing.assert_close(result(three(), WEIGHTS, plain, seed=5), sum(weighted), atol=1e-10, rtol=0)
    torch.testing.assert_close(
        result(three(), WEIGHTS, elected, seed=5), twins.elected(weighted, WEIGHTS), atol=1e-10, rtol=0
    )


def test_dare_divides_by_the_chance_and_its_mean_over_seeds_is_the_adapter() -> None:
    one = three()[:1]
    exact = dense(one[0].layers["unet.layer"])
    drawn = torch.stack([result(one, [1.0], "dare_linear", density=0.25, seed=seed) for seed in range(300)])
    kept = drawn.abs() > 1e-9
    torch.testing.assert_close(drawn[kept], (4 * exact).expand_as(drawn)[kept])
    assert abs(float(kept.double().mean()) - 0.25) < 4 * (0.1875 / kept.numel()) ** 0.5
    error = (drawn.mean(0) - exact) / (exact.abs() * (3 / 300) ** 0.5)  # in standard deviations of the mean
    assert abs(float(error.mean())) < 4 / error.numel() ** 0.5
    assert 0.9 < float(error.square().mean()) < 1.1


def test_della_keeps_large_numbers_more_often_and_is_unbiased() -> None:
    one = three()[:1]
    exact = dense(one[0].layers["unet.layer"])
    drawn = torch.stack([result(one, [1.0], "della_linear", density=0.5, epsilon=0.4, seed=s) for s in range(300)])
    chance = (drawn.abs() > 1e-9).double().mean(0)
    in_order = chance.gather(1, exact.abs().argsort(1)).mean(0)
    torch.testing.assert_close(in_order, torch.linspace(0.1, 0.9, 33).double(), atol=0.025, rtol=0)
    assert float((drawn.mean(0) - exact).norm() / exact.norm()) < 0.1


@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
def test_draws_do_not_depend_on_the_size_of_blocks(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = result(three(), WEIGHTS, method)
    monkeypatch.setattr(sparsify, "_BLOCK", 1)
    monkeypatch.setattr(sparsify, "_FEWEST_ROWS", 4)
    torch.testing.assert_close(result(three(), WEIGHTS, method), before, atol=1e-12, rtol=0)


def test_every_adapter_and_layer_has_draws_of_its_own() -> None:
    layer = random_layer((40, 33), 5)
    made = merge([adapter(one=layer, two=layer)], [1], "dare_linear", {}, FULL, dtype=torch.float64)
    assert not torch.equal(dense(made.layers["unet.one"]), dense(made.layers["unet.two"]))
    both = [adapter("a", layer=layer), adapter("b", layer=layer)]
    first, second = (result(both, weights, "dare_linear") for weights in ([1.0, 0.0], [0.0, 1.0]))
    assert not torch.equal(first, second)


def _skewed(total: int) -> Tensor:
    """Magnitudes of which the largest are all at one end, so that no sample of a few tells where they are."""
    return torch.arange(total, dtype=torch.float32).pow(3)


@pytest.mark.parametrize("make", [_skewed, lambda n: torch.ones(n), lambda n: torch.zeros(n), lambda n: torch.rand(n)])
@pytest.mark.parametrize("k", [1, 2, 500, 9_999, 10_000])
@pytest.mark.parametrize("sample", [slice(0, 50), slice(-50, None), slice(None, None, 97)])
def test_thresholds_are_exact_whatever_the_sample(make: Callable[[int], Tensor], k: int, sample: slice) -> None:
    values = make(10_000)
    found = selection.kth_magnitude(lambda: iter(values.clone().split(1000)), 10_000, k, values[sample])
    assert found == float(np.sort(values.numpy())[-k])


@pytest.mark.parametrize("at_once", [0, 1 << 22])
def test_thresholds_of_a_large_layer_are_exact(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsify, "_AT_ONCE", at_once)
    pair = (torch.randn(1, 900, 8, generator=generator(1)), torch.randn(1, 8, 1100, generator=generator(2)))
    whole = (
        torch.cat([block.clone() for block in sparsify.blocks(pair)], 1).abs().flatten().sort(descending=True).values
    )
    for density in (0.01, 0.3, 0.9):
        kept = int(density * len(whole))
        apply = sparsify.sparsifier(find("ties"), {"density": density}, pair, ["one"])
        left = 0
        for block in sparsify.blocks(pair):
            apply(block)
            left += int(block.count_nonzero())
        assert left == int((whole >= whole[kept - 1]).sum())
