"""Recipes: sums are flattened, the same adapters gathered, and everything can be written down."""

from __future__ import annotations

import json

import pytest

from lorahub.algebra import Adapter
from lorahub.algebra.recipe import Recipe, Source, Step, Sum, coefficients, combine, expression, sources, to_json
from lorahub.expression import Term, parse

A, B, C = (Source(name, f"hash of {name}") for name in ("a", "b", "c"))


def test_one_adapter_with_weight_one_is_itself() -> None:
    assert combine([(1.0, A)]) is A
    assert combine([(1.0, combine([(1.0, A)]))]) is A


def test_sums_inside_sums_are_multiplied_out() -> None:
    inner = combine([(2.0, A), (-1.0, B)])
    assert combine([(0.5, inner), (3.0, C)]) == Sum(((1.0, A), (-0.5, B), (3.0, C)))


def test_the_same_adapter_is_gathered_in_the_order_of_first_use() -> None:
    again = Source("a", "hash of a")
    assert combine([(1.0, A), (2.0, B), (0.5, again)]) == Sum(((1.5, A), (2.0, B)))


def test_weights_that_cancel_drop_out() -> None:
    assert combine([(1.0, A), (1.0, B), (-1.0, A)]) is B
    assert combine([(1.0, A), (-1.0, A)]) == Sum(())
    assert combine([(0.0, A)]) == Sum(())


def test_adapters_without_a_hash_are_told_apart_by_identity() -> None:
    one, other = Source("state dict"), Source("state dict")
    assert combine([(1.0, one), (1.0, other)]) == Sum(((1.0, one), (1.0, other)))
    assert combine([(1.0, one), (1.0, one)]) == Sum(((2.0, one),))
    made = (Step("truncate", {"rule": "fixed(4)"}, (one,)), Step("truncate", {"rule": "fixed(4)"}, (other,)))
    assert len(combine([(1.0, made[0]), (1.0, made[1])]).terms) == 2  # type: ignore[union-attr]
    assert expression((Adapter("sd15", {}) - Adapter("sd15", {})).recipe) == "1*unnamed - 1*unnamed"


def test_equal_steps_on_known_files_are_the_same_adapter() -> None:
    def step(rule: str) -> Step:
        return Step("truncate", {"rule": rule}, (A,))

    assert combine([(1.0, step("fixed(4)")), (1.0, step("fixed(4)"))]) == Sum(((2.0, step("fixed(4)")),))
    assert combine([(1.0, step("fixed(4)")), (1.0, step("fixed(8)"))]) == Sum(
        ((1.0, step("fixed(4)")), (1.0, step("fixed(8)")))
    )


def test_sources_come_left_to_right_with_repetitions() -> None:
    recipe = Sum(((1.0, Step("truncate", {}, (Sum(((2.0, B), (1.0, A))),))), (0.5, B)))
    assert list(sources(recipe)) == [B, A, B]


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        (A, "a"),
        (Source("my style"), '"my style"'),
        (Sum(()), "0"),
        (Sum(((0.8, A), (-1.0, B), (1e-7, C))), "0.8*a - 1*b + 1e-07*c"),
        (Sum(((-2.5, A),)), "-2.5*a"),
        (
            Step("truncate", {"rule": "fixed(64)"}, (Sum(((0.5, A), (0.5, B))),)),
            "truncate(0.5*a + 0.5*b, rule=fixed(64))",
        ),
        (Step("merge", {"density": 0.5, "method": "ties"}, (A, B)), "merge(a, b, density=0.5, method=ties)"),
    ],
)
def test_expression_is_one_line(recipe: Recipe, text: str) -> None:
    assert expression(recipe) == text


def test_the_expression_of_a_sum_can_be_parsed_again() -> None:
    weights = (0.1 + 0.2, -1 / 3, 1e-12)
    recipe = Sum(tuple(zip(weights, (A, Source("my style", "x"), Source("sd2-popart", "y")), strict=True)))
    names = ("a", "my style", "sd2-popart")
    assert parse(expression(recipe)) == tuple(Term(*pair) for pair in zip(weights, names, strict=True))


def test_json_holds_everything_but_the_metadata_of_sources() -> None:
    source = Source("a", "cafe", {"ss_tag": "x"})
    recipe = Step("truncate", {"rule": "fixed(64)"}, (Sum(((0.5, source),)),))
    assert json.loads(json.dumps(to_json(recipe))) == {
        "step": "truncate",
        "settings": {"rule": "fixed(64)"},
        "of": [{"sum": [[0.5, {"source": "a", "data_sha256": "cafe"}]]}],
    }


def test_what_a_merge_multiplies_its_operands_by_counts() -> None:
    merged = Step("merge", {"method": "ties", "weights": [0.5, 2.0], "density": 0.3}, (A, Sum(((3.0, B), (1.0, A)))))
    scaled = Step("normalised", {"factor": 2.0}, (Step("truncate", {"rule": "fixed(4)"}, (merged,)),))
    assert coefficients(scaled) == [(5.0, A), (12.0, B)]
