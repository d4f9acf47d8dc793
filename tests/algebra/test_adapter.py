"""Adapter against one long dense vector: the laws of a vector space, offsets, embeddings, weights by pattern."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from lorahub.algebra import Adapter, LowRank, fixed, truncate, weighted
from lorahub.algebra.recipe import Source, Step, expression
from lorahub.errors import BaseMismatchError, ConflictError, UsageError

from .making import adapter, flat, random_layer

SHAPES = {"unet.down.to_q": (6, 5), "unet.down.conv": (4, 27), "unet.up.to_q": (5, 6), "text_encoder.fc1": (3, 4)}
FULL = {"unet.down.conv": (4, 3, 3, 3)}
FACTORS = st.floats(-8, 8, allow_nan=False).map(lambda value: round(value, 3))


@st.composite
def adapters(draw: st.DrawFn) -> Adapter:
    """Adapters that touch any subset of the layers, with ranks 0 to 3, of any dtype and scale."""
    layers: dict[str, LowRank] = {}
    for name in draw(st.lists(st.sampled_from(sorted(SHAPES)), unique=True)):
        dtype = draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
        layers[name] = random_layer(
            FULL.get(name, SHAPES[name]),
            draw(st.integers(0, 3)),
            seed=draw(st.integers(0, 99)),
            scale=draw(FACTORS),
            dtype=dtype,
        )
    return Adapter("sd15", layers)


def vector(value: Adapter) -> Tensor:
    return flat(value, SHAPES)


def same(one: Adapter, other: Adapter | Tensor) -> None:
    expected = vector(other) if isinstance(other, Adapter) else other
    torch.testing.assert_close(vector(one), expected, rtol=1e-11, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(adapters(), adapters(), adapters(), FACTORS, FACTORS)
def test_adapters_are_a_vector_space(a: Adapter, b: Adapter, c: Adapter, s: float, t: float) -> None:
    same(a + b, vector(a) + vector(b))
    same(a - b, vector(a) - vector(b))
    same(-a, -vector(a))
    same(s * a, s * vector(a))
    same((a + b) + c, a + (b + c))
    same(a + b, b + a)
    same(s * (a + b), s * a + s * b)
    same((s + t) * a, s * a + t * a)
    same(s * (t * a), (s * t) * a)
    same(1 * a, a)
    if abs(s) > 1e-2:
        same(a / s, vector(a) / s)


@settings(max_examples=25, deadline=None)
@given(adapters(), adapters())
def test_differences_that_vanish_are_exactly_zero(a: Adapter, b: Adapter) -> None:
    for nothing in (a - a, 0 * a, a + -a, 2 * a - a - a, (a + b) - b - a):
        assert not vector(nothing).any()
        assert nothing.parameters == 0


def test_disjoint_layers_are_both_kept() -> None:
    a, b = adapter(q=random_layer((6, 5), 2)), adapter("lcm", k=random_layer((4, 3), 1))
    total = a + 2 * b
    assert list(total.layers) == ["unet.q", "unet.k"]
    assert total.parameters == a.parameters + b.parameters == 2 * 11 + 7


def test_mixed_bases_are_refused_by_name() -> None:
    with pytest.raises(BaseMismatchError, match=r"'style' \(sdxl\) and 'lcm' \(sd15\)"):
        adapter("style", "sdxl") - adapter("lcm", "sd15")
    with pytest.raises(BaseMismatchError, match="cannot add 'the combination'"):
        (adapter("style", "sdxl") + adapter("blur", "sdxl")) + adapter("lcm", "sd15")


def test_a_layer_of_two_shapes_is_refused_by_name() -> None:
    with pytest.raises(BaseMismatchError, match=r"^unet\.q: cannot add"):
        adapter(q=random_layer((6, 5), 2)) + adapter(q=random_layer((5, 6), 2))


def test_adapters_add_to_adapters_and_scale_by_numbers_only() -> None:
    a = adapter(q=random_layer((6, 5), 2))
    for operation in (
        lambda: a + 1,
        lambda: a - 1,
        lambda: a * a,
        lambda: a / a,
        lambda: a * None,
        lambda: "2" / a,
    ):
        with pytest.raises(TypeError, match="unsupported operand"):
            operation()


def test_offsets_are_further_coordinates() -> None:
    one = dataclasses.replace(adapter(), offsets={"unet.a.bias": torch.tensor([1.0, 2.0])})
    two = dataclasses.replace(adapter("lcm"), offsets={"unet.a.bias": torch.ones(2), "unet.b.bias": torch.ones(3)})
    total = 2 * one - two / 4
    assert total.offsets["unet.a.bias"].tolist() == [1.75, 3.75]
    assert total.offsets["unet.b.bias"].tolist() == [-0.25] * 3
    assert total.parameters == 5
    wider = dataclasses.replace(adapter("wider"), offsets={"unet.a.bias": torch.ones(1)})
    with pytest.raises(BaseMismatchError, match=r"unet\.a\.bias: cannot add lengths \[2\] and \[1\]"):
        one + wider


def test_embeddings_come_along_unscaled_and_never_silently_change() -> None:
    token = torch.ones(1, 4)
    one = dataclasses.replace(adapter(), embeddings={"<s1>": token})
    two = dataclasses.replace(adapter("lcm"), embeddings={"<s1>": token.clone(), "<s2>": 2 * token})
    total = 3 * one - 5 * two
    assert {name: value.tolist() for name, value in total.embeddings.items()} == {
        "<s1>": [[1.0] * 4],
        "<s2>": [[2.0] * 4],
    }
    other = dataclasses.replace(adapter("other"), embeddings={"<s1>": 3 * token})
    with pytest.raises(ConflictError, match="'<s1>'"):
        one + other


def test_weighted_scales_every_layer_by_the_first_pattern_found_in_its_name() -> None:
    a = Adapter(
        "sdxl",
        {
            "unet.down_blocks.1.to_q": random_layer((6, 5), 2, seed=1),
            "unet.up_blocks.0.to_q": random_layer((6, 5), 2, seed=2),
            "unet.mid_block.conv": random_layer((4, 3, 3, 3), 2, seed=3),
        },
        {"unet.up_blocks.0.bias": torch.ones(2)},
        {"<s1>": torch.ones(1, 4)},
        Source("style"),
    )
    result = weighted(a, {r"down_blocks\..*": 0.5, "to_q": 2.0, r"\.bias$": -1.0})
    expected = {"unet.down_blocks.1.to_q": 0.5, "unet.up_blocks.0.to_q": 2.0, "unet.mid_block.conv": 1.0}
    for name, factor in expected.items():
        torch.testing.assert_close(
            result.layers[name].dense(torch.float64), factor * a.layers[name].dense(torch.float64)
        )
    assert result.offsets["unet.up_blocks.0.bias"].tolist() == [-1.0, -1.0]
    assert result.embeddings["<s1>"].tolist() == [[1.0] * 4]
    assert result.recipe == Step(
        "weighted", {"weights": {r"down_blocks\..*": 0.5, "to_q": 2.0, r"\.bias$": -1.0}}, (Source("style"),)
    )
    assert weighted(a, {"mid_block": 0}).layers["unet.mid_block.conv"].rank == 0


def test_weighted_refuses_patterns_that_mean_nothing() -> None:
    a = adapter(q=random_layer((6, 5), 2))
    with pytest.raises(UsageError, match=r"no layer matches 'donw'; layers are named like unet\.q"):
        weighted(a, {"donw": 0.5})
    with pytest.raises(UsageError, match=r"'\(' is not a regular expression"):
        weighted(a, {"(": 0.5})
    with pytest.raises(UsageError, match="named like none"):
        weighted(adapter(), {"q": 0.5})


def test_what_arithmetic_makes_of_a_truncated_adapter_claims_no_error() -> None:
    short = truncate(adapter(q=random_layer((6, 5), 3)), fixed(1))
    assert short.error > 0
    for derived in (2 * short, short + short, -short, weighted(short, {"q": 2.0})):
        assert type(derived) is Adapter


def test_the_recipe_tells_how_an_adapter_was_made() -> None:
    a, b = adapter("style", q=random_layer((6, 5), 2)), adapter("lcm", q=random_layer((6, 5), 2, seed=5))
    assert expression((0.8 * a + 1.0 * b).recipe) == "0.8*style + 1*lcm"
    assert expression((2 * (a - 0.5 * b) + b).recipe) == "2*style"
    assert expression((a - a).recipe) == "0"
    assert expression(truncate(0.8 * a + b, fixed(1)).recipe) == "truncate(0.8*style + 1*lcm, rule=fixed(1))"
