"""What holds for every method: identities, order, absent layers, offsets, dtypes, rules, errors."""

from __future__ import annotations

import math

import pytest
import torch

from lorahub.algebra import Adapter, LowRank, RankRule, budget, energy, fixed, relative
from lorahub.algebra.recipe import Source, Step
from lorahub.errors import BaseMismatchError, UsageError, VerificationError
from lorahub.merge import METHODS, merge
from lorahub.merge.reduction import reduce
from tests.algebra.making import adapter, best_error, dense, random_layer, with_spectrum

DENSE = [name for name, method in METHODS.items() if method.dense]
SMALL = [1.0, 0.5, 0.3, 0.2]
UNCUT = {"density": 1.0}


def settings(method: str, **wanted: object) -> dict[str, object]:
    return {name: value for name, value in wanted.items() if name in METHODS[method].settings}


def pair(dtype: torch.dtype = torch.float16) -> list[Adapter]:
    return [
        adapter(
            name,
            square=with_spectrum(SMALL, (96, 96), seed=seed, form="mixed", dtype=dtype),
            conv=with_spectrum(SMALL, (48, 16, 3, 3), seed=seed + 10, form="mixed", dtype=dtype),
        )
        for seed, name in ((1, "style"), (5, "lcm"))
    ]


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("slerp", "iso_c")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_adapter_of_weight_one_is_itself(method: str, dtype: torch.dtype) -> None:
    one = pair()[0]
    made = merge([one], [1.0], method, settings(method, density=1.0), fixed(64), dtype=dtype)
    for name, layer in one.layers.items():
        assert made.layers[name].rank == 4
        assert made.layers[name].shape == layer.shape
        torch.testing.assert_close(dense(made.layers[name]), dense(layer), atol=1e-6, rtol=0)
    assert made.relative_error < 1e-6


@pytest.mark.parametrize("method", ["magnitude_prune", "dare_linear", "della_linear", "breadcrumbs"])
def test_with_density_one_sums_are_the_sum(method: str) -> None:
    one, two = pair(torch.float64)
    made = merge([one, two], [0.8, -0.5], method, UNCUT, fixed(8), dtype=torch.float64)
    for name, layer in (0.8 * one - 0.5 * two).layers.items():
        torch.testing.assert_close(dense(made.layers[name]), dense(layer), atol=1e-12, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_repeats_itself_and_ignores_the_order_of_layers(method: str, dtype: torch.dtype) -> None:
    one, two = pair(dtype)
    turned = Adapter(one.base, dict(reversed(one.layers.items())), recipe=one.recipe)
    first = merge([one, two], [0.8, 1], method, {}, fixed(4), dtype=dtype)
    second = merge([turned, two], [0.8, 1], method, {}, fixed(4), dtype=dtype)
    for name, layer in first.layers.items():
        again = second.layers[name]
        assert torch.equal(layer.blocks[0].up, again.blocks[0].up)
        assert torch.equal(layer.blocks[0].down, again.blocks[0].down)
        assert layer.blocks[0].up.dtype == dtype
    assert first.report == {name: second.report[name] for name in first.report}


def test_the_seed_changes_what_is_drawn() -> None:
    one, two = (merge(pair(), [1, 1], "dare_linear", {"seed": seed}, fixed(4)) for seed in (1, 2))
    assert not torch.equal(one.layers["unet.square"].up, two.layers["unet.square"].up)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("slerp", "iso_c")])
def test_a_layer_that_one_adapter_lacks_is_zero_there(method: str) -> None:
    one, two = pair(torch.float64)
    alone = Adapter(two.base, {"unet.square": two.layers["unet.square"]}, recipe=two.recipe)
    uncut = settings(method, density=1.0)
    made = merge([one, alone], [1, 1], method, uncut, fixed(64), dtype=torch.float64)
    expected = dense(one.layers["unet.conv"])
    torch.testing.assert_close(dense(made.layers["unet.conv"]), expected, atol=1e-10, rtol=0)
    if METHODS[method].consensus == "sum":
        half = merge([one, alone], [1, 1], method, uncut | {"divide": "count"}, fixed(64), dtype=torch.float64)
        torch.testing.assert_close(dense(half.layers["unet.conv"]), expected / 2, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("method", "given", "expected"),
    [
        ("ties", {"density": 0.5}, [4.0, -3.0, 0.5, 5.0]),
        ("magnitude_prune", {"density": 0.5}, [4.0, -3.0, 0.5, 5.0]),
        ("breadcrumbs", {"density": 0.5, "gamma": 0.25}, [0.0, -3.0, 0.5, -2.0]),
        ("knots_ties", {"density": 0.5}, [4.0, -3.0, 0.5, 5.0]),
        ("tsv", {}, [4.0, -3.0, 1.5, 3.0]),
        ("iso_c", {}, [4.0, -3.0, 1.5, 3.0]),
    ],
)
def test_offsets(method: str, given: dict[str, object], expected: list[float]) -> None:
    rows = [[4.0, -3.0, 1.0, -2.0], [0.0, 0.0, 0.5, 5.0]]
    both = [Adapter("sd15", {}, {"unet.bias": torch.tensor(row)}, recipe=Source("x")) for row in rows]
    made = merge(both, [1, 1], method, given, fixed(4))
    assert made.offsets["unet.bias"].tolist() == expected


def test_offsets_turn_along_an_arc() -> None:
    rows = [[2.0, 0.0], [0.0, 2.0]]
    both = [Adapter("sd15", {}, {"unet.bias": torch.tensor(row)}, recipe=Source("x")) for row in rows]
    torch.testing.assert_close(
        merge(both, [1, 1], "slerp", {}, None).offsets["unet.bias"], torch.tensor([2.0, 2.0]).sqrt()
    )


def large() -> Adapter:
    """Large enough for the randomised SVD, with a flat tail once half of it is cut away."""
    return adapter(layer=with_spectrum([j**-0.8 for j in range(1, 17)], (300, 280), form="mixed", dtype=torch.float32))


@pytest.mark.parametrize("method", DENSE)
def test_rank_reduction_is_near_the_optimum_and_its_error_exact(method: str) -> None:
    made = merge([large()], [1.0], method, settings(method, density=0.5), fixed(16))
    target = dense(merge([large()], [1.0], method, settings(method, density=0.5), fixed(280)).layers["unet.layer"])
    error = float((target - dense(made.layers["unet.layer"])).norm())
    assert made.error == pytest.approx(error, rel=1e-4)
    assert error < 1.01 * best_error(target, 16)
    assert made.report["unet.layer"].norm == pytest.approx(float(target.norm()), rel=1e-5)


@pytest.mark.parametrize("rule", [energy(0.8), relative(0.4), energy(1.0)])
def test_rules_hold_for_what_is_stored(rule: RankRule) -> None:
    exact = merge([large()], [1.0], "ties", {"density": 0.4}, rule, dtype=torch.float64)
    made = merge([large()], [1.0], "ties", {"density": 0.4}, rule)
    assert made.relative_error <= {"energy(0.8)": 0.2**0.5, "relative(0.4)": 0.4}.get(str(rule), 1e-4) * (1 + 1e-6)
    ranks = exact.layers["unet.layer"].rank, made.layers["unet.layer"].rank
    assert ranks[0] <= ranks[1] <= ranks[0] + 2


@pytest.mark.parametrize("method", ["ties", "knots_ties"])
def test_a_budget_is_kept_and_spent_where_it_helps(method: str) -> None:
    loud = Adapter("sd15", {"unet.loud": 10 * pair()[0].layers["unet.square"], **pair()[0].layers}, recipe=Source("x"))
    made = merge([loud, pair()[1]], [1, 1], method, {}, budget(6000, overhead=0))
    assert sum(layer.rank * sum(layer.matrix_shape) * 2 for layer in made.layers.values()) <= 6000
    loud_layer, quiet = made.report["unet.loud"], made.report["unet.conv"]
    assert loud_layer.error / loud_layer.norm < quiet.error / quiet.norm


def test_a_small_error_is_summed_up_not_subtracted() -> None:
    target = dense(large().layers["unet.layer"]).float()
    start = large().layers["unet.layer"].down
    (made,) = reduce(target[None], start[None], [lambda sigma: 16], ["layer"], power=1)
    assert made.error < 2e-6 * made.norm


def test_a_start_that_knows_nothing_is_filled_up() -> None:
    target = dense(large().layers["unet.layer"]).float()
    (made,) = reduce(target[None], torch.zeros(1, 3, 280), [lambda sigma: 8], ["layer"], power=2)
    assert made.error < 1.01 * best_error(target.double(), 8)


def test_zero_weights_and_zero_layers() -> None:
    one, two = pair()
    assert merge([one, two], [0, 0], "ties", {}, fixed(4)).layers == {}
    empty = Adapter("sd15", {"unet.square": LowRank((96, 96), ())}, recipe=Source("x"))
    assert merge([empty], [1], "tsv", {}, None).layers == {}
    zero = adapter(square=LowRank.of(torch.zeros(96, 2), torch.zeros(2, 96)))
    for method in METHODS:
        others = [zero, zero] if METHODS[method].needs == "two" else [zero]
        made = merge(others, [1.0] * len(others), method, {}, fixed(4))
        assert made.layers == {}, method
        assert made.error == 0


def test_the_recipe_says_it_all() -> None:
    made = merge(pair(), [0.8, 1], "dare_ties", {"density": "0.3"}, fixed(4))
    assert isinstance(made.recipe, Step)
    assert made.recipe.operation == "merge"
    assert made.recipe.settings == {
        "method": "dare_ties", "weights": [0.8, 1.0],
        "density": 0.3, "seed": 0, "elect": "sum", "divide": "count", "rule": "fixed(4)",
    }  # fmt: skip
    assert made.recipe.of == tuple(each.recipe for each in pair())


def test_progress() -> None:
    seen: list[tuple[int, int]] = []
    merge(pair(), [1, 1], "ties", {}, fixed(4), progress=lambda *step: seen.append(step))
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize("method", METHODS)
def test_nan_is_refused_by_name(method: str) -> None:
    one, two = pair(torch.float32)
    one.layers["unet.conv"].blocks[0].up[0, 0] = math.nan
    with pytest.raises(VerificationError, match=r"^unet\.conv: the weights hold NaN or Inf"):
        merge([one, two], [1, 1], method, {}, fixed(4))


def test_what_overflows_is_refused() -> None:
    huge = adapter(layer=random_layer((8, 8), 2, scale=1e12))
    with pytest.raises(VerificationError, match="overflow float16"):
        merge([huge], [1], "ties", {}, fixed(2), dtype=torch.float16)


def test_what_cannot_be_merged() -> None:
    one, two = pair()
    with pytest.raises(UsageError, match="not low-rank: say what to keep"):
        merge([one, two], [1, 1], "ties", {}, None)
    with pytest.raises(UsageError, match="two adapters, got 1"):
        merge([one], [1], "slerp", {}, None)
    with pytest.raises(UsageError, match="must not be negative"):
        merge([one, two], [1, -1], "slerp", {}, None)
    with pytest.raises(UsageError, match="one weight for each of 2"):
        merge([one, two], [1], "ties", {}, fixed(4))
    with pytest.raises(UsageError, match="finite"):
        merge([one, two], [1, math.nan], "ties", {}, fixed(4))
    with pytest.raises(UsageError, match="got 0"):
        merge([], [], "ties", {}, fixed(4))
    with pytest.raises(BaseMismatchError, match="different bases"):
        merge([one, Adapter("sdxl", two.layers)], [1, 1], "ties", {}, fixed(4))
    with pytest.raises(BaseMismatchError, match=r"unet\.square"):
        merge([one, adapter(square=random_layer((8, 8), 2))], [1, 1], "ties", {}, fixed(4))


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    merge(pair(), [1, 1], "dare_ties", {}, fixed(4))
    assert torch.equal(torch.get_rng_state(), before)
