"""Rank rules against plain reference implementations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from lorahub.algebra import RankRule, budget, energy, fixed, relative
from lorahub.errors import UsageError

SPECTRA = st.lists(st.floats(0, 100).map(lambda value: round(value, 2)), max_size=8).map(
    lambda values: torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
)


def choose(rule: RankRule, sigma: Tensor) -> int:
    assert rule.per_layer is not None
    return rule.per_layer(sigma)


def allot(rule: RankRule, spectra: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    assert rule.overall is not None
    return rule.overall(spectra, shapes)


def left_out(sigma: Tensor, rank: int) -> float:
    return math.fsum(float(value) ** 2 for value in sigma[rank:])


@given(SPECTRA, st.integers(1, 10))
def test_fixed_keeps_so_many(sigma: Tensor, rank: int) -> None:
    assert choose(fixed(rank), sigma) == min(rank, len(sigma))


@given(SPECTRA, st.sampled_from([0.1, 0.5, 0.9, 0.99, 1.0]))
def test_energy_keeps_the_fewest_that_hold_the_share(sigma: Tensor, share: float) -> None:
    rank, total = choose(energy(share), sigma), left_out(sigma, 0)
    slack = 1e-9 * total
    assert left_out(sigma, rank) <= (1 - share) * total + slack
    assert rank == 0 or left_out(sigma, rank - 1) > (1 - share) * total - slack


@given(SPECTRA, st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.999]))
def test_relative_keeps_the_fewest_that_stay_below_the_error(sigma: Tensor, error: float) -> None:
    rank, total = choose(relative(error), sigma), left_out(sigma, 0)
    slack = 1e-9 * total
    assert left_out(sigma, rank) <= error**2 * total + slack
    assert rank == 0 or left_out(sigma, rank - 1) > error**2 * total - slack


def test_worked_examples() -> None:
    sigma = torch.tensor([3.0, 2.0, 1.0, 0.0])  # squares 9, 4, 1 of 14
    assert [choose(energy(share), sigma) for share in (9 / 14, 0.65, 13 / 14, 0.95, 1)] == [1, 2, 2, 3, 3]
    assert [choose(relative(error), sigma) for error in (0.0, 0.26, 0.27, 0.6, 0.8)] == [3, 3, 2, 1, 1]
    assert [choose(rule, torch.zeros(0)) for rule in (fixed(4), energy(0.9), relative(0.1))] == [0, 0, 0]
    assert [choose(rule, torch.zeros(3)) for rule in (energy(0.9), relative(0.1))] == [0, 0]


def test_rules_name_themselves_exactly() -> None:
    assert str(fixed(64)) == "fixed(64)"
    assert str(energy(0.99)) == "energy(0.99)"
    assert str(energy(0.99999999)) == "energy(0.99999999)"
    assert str(relative(0.1234567)) == "relative(0.1234567)"
    assert str(budget(10**6)) == "budget(1000000)"


@pytest.mark.parametrize(
    "make",
    [
        lambda: fixed(0),
        lambda: fixed(-3),
        lambda: energy(0),
        lambda: energy(1.01),
        lambda: energy(float("nan")),
        lambda: relative(-0.1),
        lambda: relative(1),
        lambda: relative(float("nan")),
        lambda: budget(0),
    ],
)
def test_rules_that_mean_nothing_are_refused(make: object) -> None:
    with pytest.raises(UsageError):
        make()  # type: ignore[operator]


def cost(ranks: Mapping[str, int], shapes: Mapping[str, tuple[int, int]], each: int, overhead: int) -> int:
    return sum(rank * sum(shapes[name]) * each + (overhead if rank else 0) for name, rank in ranks.items())


def best(
    spectra: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]], size: int, each: int, overhead: int
) -> float:
    """The most energy that any affordable choice of ranks holds, by trying all."""
    gains = []
    for ranks in itertools.product(*(range(len(sigma) + 1) for sigma in spectra.values())):
        chosen = dict(zip(spectra, ranks, strict=True))
        if cost(chosen, shapes, each, overhead) <= size:
            gains.append(held(spectra, chosen))
    return max(gains)


def held(spectra: Mapping[str, Tensor], ranks: Mapping[str, int]) -> float:
    return math.fsum(left_out(sigma, 0) - left_out(sigma, ranks[name]) for name, sigma in spectra.items())


BUNDLES = st.lists(SPECTRA.map(lambda sigma: sigma[:4]), min_size=1, max_size=4).map(
    lambda spectra: {f"layer{index}": sigma for index, sigma in enumerate(spectra)}
)


@settings(max_examples=60, deadline=None)
@given(BUNDLES, st.integers(1, 400))
def test_budget_is_optimal_where_every_term_costs_the_same(spectra: dict[str, Tensor], size: int) -> None:
    shapes = dict.fromkeys(spectra, (6, 4))
    ranks = allot(budget(size, overhead=0), spectra, shapes)
    assert cost(ranks, shapes, 2, 0) <= size
    assert held(spectra, ranks) == pytest.approx(best(spectra, shapes, size, 2, 0), rel=1e-12, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(BUNDLES, st.lists(st.integers(1, 40), min_size=4, max_size=4), st.integers(1, 1500), st.sampled_from([2, 4]))
def test_budget_is_optimal_up_to_one_term_where_costs_differ(
    spectra: dict[str, Tensor], widths: list[int], size: int, each: int
) -> None:
    shapes = {name: (width, 3) for name, width in zip(spectra, widths, strict=False)}
    ranks = allot(budget(size, bytes_per_element=each, overhead=0), spectra, shapes)
    assert cost(ranks, shapes, each, 0) <= size
    largest = max((float(sigma[0]) ** 2 for sigma in spectra.values() if len(sigma)), default=0.0)
    assert held(spectra, ranks) >= best(spectra, shapes, size, each, 0) - largest - 1e-9


@settings(max_examples=60, deadline=None)
@given(BUNDLES, st.integers(1, 3000), st.integers(0, 500))
def test_budget_never_exceeds_its_bytes_and_buys_no_zeros(spectra: dict[str, Tensor], size: int, overhead: int) -> None:
    shapes = {name: (7 + index, 3) for index, name in enumerate(spectra)}
    ranks = allot(budget(size, overhead=overhead), spectra, shapes)
    assert ranks.keys() == spectra.keys()
    assert cost(ranks, shapes, 2, overhead) <= size
    for name, rank in ranks.items():
        assert bool((spectra[name][:rank] > 0).all())


def test_a_large_budget_keeps_everything_and_a_small_one_the_best_per_byte() -> None:
    spectra = {"wide": torch.tensor([3.0, 1.0]), "narrow": torch.tensor([2.0, 1.5])}
    shapes = {"wide": (90, 10), "narrow": (9, 1)}  # 9/200, 1/200 against 4/20, 2.25/20 per byte
    assert allot(budget(10**6), spectra, shapes) == {"wide": 2, "narrow": 2}
    assert allot(budget(220, overhead=0), spectra, shapes) == {"wide": 0, "narrow": 2}
    assert allot(budget(240, overhead=0), spectra, shapes) == {"wide": 1, "narrow": 2}
    assert allot(budget(240), spectra, shapes) == {"wide": 0, "narrow": 0}
