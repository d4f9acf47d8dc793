"""Lengths and angles against dense matrices in float64."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from lorahub.algebra import (
    Adapter,
    LowRank,
    cosine,
    gram,
    inner,
    layer_grams,
    norm,
    normalised,
    orthogonal,
    project,
)
from lorahub.algebra.geometry import CHUNK_ROWS, layer_gram, product, square
from lorahub.algebra.recipe import coefficients, expression, sources
from lorahub.errors import BaseMismatchError, UsageError, VerificationError

from .making import adapter, dense, flat, random_layer, reloaded, single, with_spectrum

SHAPES = {"unet.q": (700, 30), "unet.conv": (40, 27), "unet.k": (30, 1100)}


def three() -> list[Adapter]:
    """Adapters of mixed ranks, dtypes and scales; `k` is missing in one, `conv` in another."""
    return [
        adapter(
            "style",
            q=random_layer((700, 30), 4, seed=1, scale=0.5, dtype=torch.float16),
            conv=random_layer((40, 3, 3, 3), 2, seed=2),
        ),
        adapter(
            "lcm",
            q=random_layer((700, 30), 3, seed=3) + random_layer((700, 30), 2, seed=4, scale=-0.3, dtype=torch.bfloat16),
            k=random_layer((30, 1100), 5, seed=5, dtype=torch.float32),
        ),
        adapter(
            "blur",
            q=random_layer((700, 30), 1, seed=6),
            conv=random_layer((40, 3, 3, 3), 40, seed=7),
            k=LowRank((30, 1100), ()),
        ),
    ]


def test_gram_inner_norm_and_cosine_match_dense() -> None:
    vectors = torch.stack([flat(value, SHAPES) for value in three()])
    expected = vectors @ vectors.T
    scale = float(expected.diagonal().max())
    torch.testing.assert_close(gram(three()), expected, rtol=1e-6, atol=1e-7 * scale)
    a, b, _ = three()
    assert inner(a, b) == pytest.approx(float(expected[0, 1]), rel=1e-6, abs=1e-7 * scale)
    assert norm(a) == pytest.approx(math.sqrt(float(expected[0, 0])), rel=1e-6)
    angle = float(expected[0, 1] / (expected[0, 0] * expected[1, 1]).sqrt())
    assert cosine(a, b) == pytest.approx(angle, abs=1e-6)
    assert cosine(a, -2 * a) == -1.0


def test_layer_grams_sum_to_the_whole() -> None:
    parts = layer_grams(three())
    assert list(parts) == ["unet.q", "unet.conv", "unet.k"]
    assert parts["unet.conv"][1].tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(sum(parts.values(), torch.zeros(3, 3, dtype=torch.float64)), gram(three()))


def test_offsets_count_and_embeddings_do_not() -> None:
    one = dataclasses.replace(
        adapter(), offsets={"unet.a.bias": torch.tensor([3.0, 4.0])}, embeddings={"<s1>": torch.ones(1, 9)}
    )
    two = dataclasses.replace(adapter(), offsets={"unet.a.bias": torch.tensor([1.0, 0.0]), "unet.b": torch.ones(1)})
    assert norm(one) == 5.0
    assert inner(one, two) == 3.0
    assert cosine(one, two) == pytest.approx(3 / (5 * math.sqrt(2)))
    short = dataclasses.replace(adapter(), offsets={"unet.a.bias": torch.ones(1)})
    with pytest.raises(BaseMismatchError, match=r"^unet\.a\.bias has different lengths: \[2\] and \[1\]"):
        inner(one, short)


def test_projection_is_the_nearest_multiple() -> None:
    a, b, _ = three()
    along = project(a, b)
    va, vb = flat(a, SHAPES), flat(b, SHAPES)
    torch.testing.assert_close(flat(along, SHAPES), (va @ vb) / (vb @ vb) * vb, rtol=1e-5, atol=1e-7)
    assert abs(cosine(a - along, b)) < 1e-7
    torch.testing.assert_close(flat(project(3 * b, b), SHAPES), 3 * vb, rtol=1e-6, atol=1e-9)


def test_a_zero_adapter_has_length_zero_and_no_direction() -> None:
    a = three()[0]
    zero = 0 * a
    assert norm(zero) == norm(adapter()) == 0.0
    assert inner(a, zero) == 0.0
    with pytest.raises(UsageError, match="angle to a zero adapter"):
        cosine(a, zero)
    with pytest.raises(UsageError, match="project onto a zero adapter"):
        project(a, zero)
    assert norm(project(zero, a)) == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_two_copies_of_one_file_are_no_distance_apart(dtype: torch.dtype) -> None:
    layer = with_spectrum([i**-1.0 for i in range(1, 33)], (900, 700), form="mixed", dtype=dtype)
    a, copy = single(layer), single(reloaded(layer))
    assert norm(a - copy) < 1e-6 * norm(a)
    assert norm(0.3 * a + 0.7 * copy - a) < 1e-6 * norm(a)


@pytest.mark.parametrize("closeness", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
def test_short_differences_of_long_vectors_are_measured_right(closeness: float) -> None:
    layer = with_spectrum([i**-1.0 for i in range(1, 17)], (600, 500), form="mixed", dtype=torch.float16)
    noise = random_layer((600, 500), 2, seed=9) * closeness / 700
    left = reloaded(layer) + noise - layer
    # in float64 the matrix itself keeps 1e-16 of the large parts
    assert norm(single(left)) == pytest.approx(float(torch.linalg.matrix_norm(dense(noise))), rel=1e-4)


def test_mixed_bases_and_shapes_are_refused() -> None:
    with pytest.raises(BaseMismatchError, match=r"cannot compare 'style' \(sdxl\) and 'lcm' \(sd15\)"):
        cosine(adapter("style", "sdxl"), adapter("lcm", "sd15"))
    with pytest.raises(BaseMismatchError, match=r"unet\.q has different shapes: \(5, 6\) and \(6, 5\)"):
        inner(adapter(q=random_layer((6, 5), 1)), adapter(q=random_layer((5, 6), 1)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("factor", ["up", "down"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_weights_that_are_no_numbers_are_refused_by_layer(bad: float, factor: str, dtype: torch.dtype) -> None:
    good, layer = random_layer((20, 30), 3, dtype=dtype), random_layer((20, 30), 3, dtype=dtype)
    getattr(layer.blocks[0], factor)[1, 2] = bad
    broken = adapter(fine=good, broken=layer)
    for measure in (norm, lambda a: inner(a, adapter(broken=good)), lambda a: cosine(adapter(broken=good), a)):
        with pytest.raises(VerificationError, match=r"^unet\.broken: the weights hold NaN or Inf$"):
            measure(broken)
    offset = dataclasses.replace(adapter(), offsets={"unet.a.bias": torch.tensor([1.0, bad])})
    with pytest.raises(VerificationError, match=r"^unet\.a\.bias holds NaN or Inf$"):
        norm(offset)


def test_numbers_whose_squares_overflow_float32_are_measured_in_float64() -> None:
    huge = random_layer((20, 30), 3, dtype=torch.float32)
    layer = LowRank.of(huge.blocks[0].up * 1e25, huge.blocks[0].down * 1e-25)
    assert norm(single(layer)) == pytest.approx(norm(single(huge)), rel=1e-6)


@pytest.mark.parametrize("rows", [1, CHUNK_ROWS - 1, CHUNK_ROWS, CHUNK_ROWS + 1, 3 * CHUNK_ROWS + 7])
def test_products_are_summed_in_chunks_without_losing_rows(rows: int) -> None:
    vectors = torch.randn(rows, 3, dtype=torch.float64)
    expected = vectors.T @ vectors
    for same in (vectors, vectors.T.contiguous().T, torch.cat([vectors, vectors], dim=1)[:, 3:]):
        assert product(same, same).dtype == product(same.float(), same.float()).dtype == torch.float64
        torch.testing.assert_close(product(same, same), expected)
        torch.testing.assert_close(product(same.float(), same.float()), expected, rtol=1e-4, atol=1e-4)


def test_no_layers_at_all_make_a_gram_matrix_of_zeros() -> None:
    assert layer_gram([LowRank((3, 4), ()), LowRank((3, 4), ())]).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert gram([adapter(), adapter()]).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def with_offsets(value: Adapter, **offsets: list[float]) -> Adapter:
    return dataclasses.replace(value, offsets={name: torch.tensor(numbers) for name, numbers in offsets.items()})


def test_orthogonal_takes_the_direction_out_of_every_layer() -> None:
    style, lcm, _ = three()
    style = style + 0.1 * adapter("more", q=lcm.layers["unet.q"])
    apart = orthogonal(style, lcm)
    a, b = style.layers["unet.q"].dense(torch.float64), lcm.layers["unet.q"].dense(torch.float64)
    expected = a - (a * b).sum() / b.square().sum() * b
    torch.testing.assert_close(apart.layers["unet.q"].dense(torch.float64), expected, rtol=1e-6, atol=1e-6)
    for matrix in layer_grams([apart, lcm]).values():
        assert abs(float(matrix[0, 1])) <= 1e-6 * float(matrix[0, 0] * matrix[1, 1]) ** 0.5
    assert apart.layers["unet.conv"] is style.layers["unet.conv"]
    assert apart.layers.keys() == style.layers.keys()
    assert orthogonal(style, -3 * lcm).layers["unet.q"].rank == apart.layers["unet.q"].rank


def test_orthogonal_and_the_sum_keep_shared_factors_once() -> None:
    style, lcm, _ = three()
    ranks = {name: layer.rank for name, layer in (style + lcm).layers.items()}
    assert {name: layer.rank for name, layer in (orthogonal(style, lcm) + lcm).layers.items()} == ranks


def test_orthogonal_of_offsets_and_of_a_zero_direction() -> None:
    style, lcm, _ = three()
    style, lcm = with_offsets(style, bias=[1.0, 1.0], other=[2.0]), with_offsets(lcm, bias=[2.0, 0.0])
    apart = orthogonal(style, lcm)
    assert apart.offsets["bias"].tolist() == [0.0, 1.0]
    assert apart.offsets["other"].tolist() == [2.0]
    with pytest.raises(BaseMismatchError, match="bias has different lengths"):
        orthogonal(style, with_offsets(lcm, bias=[1.0]))
    with pytest.raises(UsageError, match="is zero: no direction"):
        orthogonal(style, 0 * lcm)
    with pytest.raises(BaseMismatchError):
        orthogonal(style, adapter("sdxl", base="sdxl", q=lcm.layers["unet.q"]))


def test_normalised_has_the_length_that_was_asked_for() -> None:
    style, lcm, blur = three()
    mixed = normalised(style + lcm, norm(blur))
    assert norm(mixed) == pytest.approx(norm(blur), rel=1e-9)
    assert cosine(mixed, style + lcm) == pytest.approx(1.0)
    with pytest.raises(UsageError, match="is zero"):
        normalised(style - style, 1.0)


def test_recipes_of_both_say_what_each_source_counts() -> None:
    style, lcm, _ = three()
    mixed = 0.8 * orthogonal(style, lcm) + 0.5 * lcm
    assert [(weight, source.name) for weight, source in coefficients(mixed.recipe)] == [(0.8, "style"), (0.5, "lcm")]
    double = normalised(mixed, 2 * norm(mixed))
    assert [weight for weight, _ in coefficients(double.recipe)] == pytest.approx([1.6, 1.0])
    assert expression(double.recipe) == "normalised(0.8*orthogonal(style, lcm) + 0.5*lcm, factor=2.0)"
    assert [source.name for source in sources(double.recipe)] == ["style", "lcm", "lcm"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, CHUNK_ROWS, 2 * CHUNK_ROWS + 7])
def test_square_is_the_product_with_itself(rows: int, dtype: torch.dtype) -> None:
    columns = torch.randn(rows, 33, dtype=dtype, generator=torch.Generator().manual_seed(rows))
    for given in (columns, columns.T.contiguous().T):  # up, and down seen from its side
        exact = given.double().T @ given.double()
        found = square(given)
        assert found.dtype == torch.float64
        assert torch.equal(found, found.T)
        size = math.sqrt(float(exact.diagonal().max()) * float(exact.diagonal().min()))
        assert float((found - exact).abs().max()) <= (1e-6 if dtype == torch.float32 else 1e-13) * size * 10
        assert torch.equal(found, square(given))


def test_the_same_factors_elsewhere_in_memory_are_no_distance_away() -> None:
    layer = random_layer((700, 300), 8, seed=1, dtype=torch.float16)
    block = layer.blocks[0]
    found = layer_gram([layer, LowRank.of(block.up.clone(), block.down.clone(), scale=block.scale)])
    assert found[0, 0] == pytest.approx(float(found[0, 1]), rel=1e-12)
    assert found[0, 0] == pytest.approx(float(found[1, 1]), rel=1e-12)
