"""Layers decomposed together against the same layers one by one: the numbers, the order, the memory, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lorahub.algebra import Adapter, LowRank, RankRule, batched, budget, energy, fixed, relative, truncate
from lorahub.algebra.batched import alone, batches, decompose_all
from lorahub.errors import VerificationError
from tests.devices import elsewhere

from .making import adapter, dense, orthonormal, random_layer, reloaded, with_spectrum


def cancelling() -> LowRank:
    one = random_layer((40, 30), 3, seed=7)
    return one - (1 + 1e-9) * reloaded(one)


def layers(dtype: torch.dtype) -> dict[str, LowRank]:
    """Of three shapes, in no order; among those of (40, 30) and rank 6: fine, of rank 3, zero, cancelling, large, tiny."""
    narrow = random_layer((40, 30), 3, seed=6)
    mixed = {
        "fine": random_layer((40, 30), 6, seed=1),
        "conv": random_layer((8, 6, 3, 3), 4, seed=2),
        "short of rank": narrow + 0.5 * reloaded(narrow),
        "wide": random_layer((20, 90), 6, seed=3, scale=-0.3),
        "zero": LowRank.of(torch.zeros(40, 6), torch.zeros(6, 30)),
        "cancelling": cancelling(),
        "steep": with_spectrum([10.0**-i for i in range(6)], (40, 30), form="mixed"),
        "two blocks": random_layer((40, 30), 2, seed=4) + 0.3 * random_layer((40, 30), 4, seed=5),
        "large": random_layer((40, 30), 6, seed=8, scale=1e9),
        "tiny": random_layer((40, 30), 6, seed=9, scale=1e-9),
        "full": random_layer((5, 4), 6, seed=10),
        "empty": LowRank((40, 30), ()),
        "fine too": random_layer((40, 30), 6, seed=11),
    }
    for name, layer in mixed.items():
        blocks = tuple(type(b)(b.up.to(dtype), b.down.to(dtype), b.scale) for b in layer.blocks)
        mixed[name] = LowRank(layer.shape, blocks)
    return mixed


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("rule", [fixed(2), fixed(100), energy(0.9), relative(0.01)], ids=str)
def test_as_one_by_one(dtype: torch.dtype, rule: RankRule) -> None:
    choose = rule.per_layer
    assert choose is not None
    given = layers(dtype)
    found = dict(decompose_all(given, lambda name: choose, "cpu"))
    assert found.keys() == given.keys()
    for name, layer in given.items():
        wanted = alone(layer, choose, exact=True)
        size = float(wanted.sigma[0]) if len(wanted.sigma) else 0.0
        assert torch.allclose(found[name].sigma[: len(wanted.sigma)], wanted.sigma, rtol=1e-12, atol=1e-12 * size), name
        assert found[name].up.shape == wanted.up.shape, name
        assert_close(found[name].up @ found[name].down, wanted.up @ wanted.down, 1e-12 * size)
        assert_close(found[name].up.square().sum(0), found[name].down.square().sum(1), 1e-12 * size)


def assert_close(one: Tensor, other: Tensor, tolerance: float) -> None:
    assert one.shape == other.shape
    assert float((one - other).abs().max() if one.numel() else 0) <= tolerance


@pytest.fixture
def alone_calls(monkeypatch: pytest.MonkeyPatch) -> list[LowRank]:
    """The layers that did not get through together."""
    calls: list[LowRank] = []
    honest = batched.decompose

    def spied(layer: LowRank, *arguments: object, **settings: object) -> object:
        calls.append(layer)
        return honest(layer, *arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(batched, "decompose", spied)
    return calls


def test_only_what_is_not_trusted_goes_on_alone(alone_calls: list[LowRank]) -> None:
    given = layers(torch.float64)
    dict(decompose_all(given, lambda name: lambda sigma: min(6, len(sigma)), "cpu"))
    names = [next(name for name, layer in given.items() if layer is call) for call in alone_calls]
    assert sorted(names) == ["cancelling", "full", "short of rank", "steep", "zero"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_layer_that_holds_no_numbers_is_named_and_spoils_no_other(value: float) -> None:
    given = layers(torch.float32)
    given["fine"].blocks[0].down[0, 0] = value
    named = decompose_all(given, lambda name: lambda sigma: min(2, len(sigma)), "cpu")
    with pytest.raises(VerificationError, match=r"^fine: the weights hold NaN or Inf$"):
        next(named)
    given = {"other": given["fine too"], **given}
    named = decompose_all(given, lambda name: lambda sigma: min(2, len(sigma)), "cpu")
    name, found = next(named)
    assert name == "other"
    assert_close(found.up @ found.down, best(given["other"], 2), 1e-6)


def best(layer: LowRank, rank: int) -> Tensor:
    u, sigma, vh = torch.linalg.svd(dense(layer), full_matrices=False)
    return (u[:, :rank] * sigma[:rank]) @ vh[:rank]


@pytest.mark.parametrize("limit", [1, 100_000, batched.BATCH_BYTES])
def test_no_batch_takes_more_than_the_limit(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    sizes: list[tuple[int, int]] = []
    honest = batched._from_grams

    def spied(group: list[LowRank], chooses: list[Callable[[Tensor], int]], device: str) -> object:
        sizes.append((len(group), batched._bytes(group[0])))
        return honest(group, chooses, device)

    monkeypatch.setattr(batched, "_from_grams", spied)
    given = layers(torch.float32)
    choose: Callable[[Tensor], int] = lambda sigma: min(2, len(sigma))  # noqa: E731
    found = dict(decompose_all(given, lambda name: choose, "cpu", limit=limit))
    assert all(count == 1 or count * each <= limit for count, each in sizes)
    whole = dict(decompose_all(given, lambda name: choose, "cpu"))
    for name in given:
        assert_close(found[name].sigma, whole[name].sigma, 1e-12 * float(whole[name].sigma.sum()))


def test_batches_keep_the_order_within_a_kind() -> None:
    assert list(batches("aXbYcZ", str.isupper, lambda name: 10, limit=25)) == [["a", "b"], ["c"], ["X", "Y"], ["Z"]]
    assert list(batches("ab", str.isupper, lambda name: 0, limit=0)) == [["a"], ["b"]]


@pytest.mark.parametrize("rule", [fixed(3), energy(0.9), budget(3000)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_truncate_on_another_device(rule: RankRule, dtype: torch.dtype) -> None:
    given = layers(torch.float32)
    del given["large"], given["tiny"]  # neither fits half precision
    whole = adapter(**{name.replace(" ", "_"): layer for name, layer in given.items()})
    calls: list[tuple[int, int]] = []
    here = truncate(whole, rule, dtype=dtype)
    with elsewhere() as device:
        there = truncate(whole, rule, dtype=dtype, device=device, progress=lambda *told: calls.append(told))
    assert calls == [(done, len(given)) for done in range(1, len(given) + 1)]
    assert list(there.layers) == list(here.layers)
    assert list(there.report) == list(here.report)
    assert there.recipe == here.recipe
    for name, layer in here.layers.items():
        other = there.layers[name]
        assert (other.rank, other.stored_dtype) == (layer.rank, dtype)
        assert {each.device.type for block in other.blocks for each in (block.up, block.down)} == {"cpu"}
        size, unit = here.report[name].norm, {torch.float16: 2e-3, torch.float32: 1e-5, torch.float64: 1e-10}[dtype]
        assert_close(dense(other), dense(layer), unit * size)
        assert there.report[name].error == pytest.approx(here.report[name].error, rel=1e-4, abs=1e-6 * size)


def test_factors_that_overflow_elsewhere_are_named() -> None:
    whole: Adapter = adapter(fine=random_layer((40, 30), 6), large=random_layer((40, 30), 6, scale=1e12))
    with elsewhere() as device, pytest.raises(VerificationError, match=r"^unet\.large: the factors overflow float16"):
        truncate(whole, fixed(2), dtype=torch.float16, device=device)


def test_clustered_singular_values_together() -> None:
    """Equal singular values have no single basis: what is judged is the error."""
    values = [2.0] * 8 + [1.0] * 8
    given = {str(seed): with_spectrum(values, (60, 50), seed=seed, form="mixed") for seed in range(3)}
    given["rotated"] = LowRank.of(
        orthonormal(60, 16, 9) @ torch.diag(torch.tensor(values).double()), orthonormal(50, 16, 8).T
    )
    for name, found in decompose_all(given, lambda name: lambda sigma: 8, "cpu"):
        error = float((dense(given[name]) - found.up @ found.down).norm())
        assert error == pytest.approx(8**0.5, rel=1e-9)
