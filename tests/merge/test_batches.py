"""Layers merged together on a device, against the same layers one by one on the CPU and against the definitions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lorahub.algebra import Adapter, LowRank, RankRule, Truncated, budget, energy, fixed
from lorahub.errors import VerificationError
from lorahub.merge import METHODS, merge, merging
from lorahub.merge.reduction import reduce
from lorahub.merge.selection import kth_magnitudes
from tests.algebra.making import adapter, dense, generator, random_layer, reloaded, with_spectrum
from tests.devices import elsewhere, metered
from tests.merge import twins

WEIGHTS = [0.8, 1.0]


def fine(seed: int, shape: tuple[int, ...] = (90, 80), rank: int = 6) -> LowRank:
    spectrum = [index**-1.2 for index in range(1, rank + 1)]
    return with_spectrum(spectrum, shape, seed=seed, form="mixed", dtype=torch.float16)


def alike(count: int, shape: tuple[int, ...] = (90, 80), rank: int = 6) -> list[Adapter]:
    """Two adapters with that many layers of one shape and rank."""
    return [
        adapter(name, **{f"layer{i}": fine(seed + 10 * i, shape, rank) for i in range(count)})
        for seed, name in ((1, "style"), (2, "lcm"))
    ]


def mixed() -> list[Adapter]:
    """Layers in no order. Alike are three fine ones and one each that is zero, short of rank, and nearly cancels."""
    short = fine(50, rank=3)
    made = []
    for seed, name in ((1, "style"), (2, "lcm")):
        layers = {
            "one": fine(seed),
            "wide": fine(seed, (70, 200)),
            "zero": LowRank.of(torch.zeros(90, 6).half(), torch.zeros(6, 80).half()),
            "two": fine(seed + 10),
            "short": reloaded(short) + seed * reloaded(short),
            "other_rank": random_layer((90, 80), 3 + seed, seed=seed),
            "opposite": (1.0 if seed == 1 else -0.799) * fine(60),
            "conv": fine(seed, (48, 16, 3, 3)),
            "three": fine(seed + 20),
            "empty": LowRank((90, 80), ()),
            **({"alone": fine(70), "alone_too": fine(80)} if seed == 1 else {}),
        }
        made.append(replace(adapter(name, **layers), offsets={"unet.one.bias": torch.arange(5.0) * seed}))
    return made


@pytest.fixture
def device() -> Iterator[str]:
    with elsewhere() as name:
        yield name


@pytest.fixture
def eigh_shapes(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Of what went into `torch.linalg.eigh`, which all but exact reductions need."""
    shapes: list[torch.Size] = []
    honest = torch.linalg.eigh

    def spied(matrix: Tensor) -> Any:
        shapes.append(matrix.shape)
        return honest(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", spied)
    return shapes


def assert_alike(here: Truncated, there: Truncated, tolerance: float) -> None:
    assert (list(there.layers), there.recipe) == (list(here.layers), here.recipe)
    assert list(there.report) == list(here.report)
    for name, report in here.report.items():
        other = there.report[name]
        assert other.norm == pytest.approx(report.norm, rel=1e-4), name
        assert other.error == pytest.approx(report.error, rel=1e-3, abs=tolerance * report.norm), name
        if name in here.layers:
            layer, again = here.layers[name], there.layers[name]
            assert (again.rank, again.shape, again.stored_dtype) == (layer.rank, layer.shape, layer.stored_dtype)
            assert {each.device.type for block in again.blocks for each in (block.up, block.down)} == {"cpu"}
            assert float((dense(again) - dense(layer)).norm()) <= tolerance * report.norm, name
    for name, offset in here.offsets.items():
        assert torch.allclose(there.offsets[name], offset, rtol=1e-5)


RULED = [("dare_linear", energy(0.8)), ("knots_ties", budget(9000)), ("tsv", energy(0.8))]


@pytest.mark.parametrize(("method", "rule"), [*((method, fixed(4)) for method in METHODS), *RULED], ids=str)
def test_as_one_by_one(device: str, method: str, rule: RankRule) -> None:
    told: list[tuple[int, int]] = []
    here = merge(mixed(), WEIGHTS, method, {}, rule)
    there = merge(mixed(), WEIGHTS, method, {}, rule, device=device, progress=lambda *step: told.append(step))
    assert told == [(done, 12) for done in range(1, 13)]
    assert "unet.zero" not in there.layers
    assert_alike(here, there, 2e-4)


@pytest.mark.parametrize("method", ["dare_linear", "knots_dare", "tsv", "iso_c"])
def test_double_precision(device: str, method: str) -> None:
    here, there = (
        merge(mixed(), WEIGHTS, method, {}, fixed(4), dtype=torch.float64, device=d) for d in ("cpu", device)
    )
    assert_alike(here, there, 1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_six_layers_take_as_many_steps_as_one(device: str, method: str, eigh_shapes: list[torch.Size]) -> None:
    merge(alike(1), WEIGHTS, method, {}, fixed(4), device=device)
    single = len(eigh_shapes)
    eigh_shapes.clear()
    merge(alike(6), WEIGHTS, method, {}, fixed(4), device=device)
    assert len(eigh_shapes) == single > 0
    assert {shape[0] for shape in eigh_shapes} == {6}


@pytest.mark.parametrize("method", METHODS)
def test_on_the_cpu_each_goes_alone(method: str, eigh_shapes: list[torch.Size]) -> None:
    merge(alike(3), WEIGHTS, method, {}, fixed(4))
    assert all(len(shape) == 2 or shape[0] == 1 for shape in eigh_shapes)


@pytest.mark.parametrize("method", METHODS)
def test_batches_are_split_where_memory_ends(
    device: str, method: str, eigh_shapes: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = merge(alike(3), WEIGHTS, method, {}, fixed(4), device=device)
    assert {shape[0] for shape in eigh_shapes} == {3}
    eigh_shapes.clear()
    monkeypatch.setattr(merging, "BATCH_BYTES", 1)
    assert_alike(together, merge(alike(3), WEIGHTS, method, {}, fixed(4), device=device), 1e-5)
    assert {shape[0] for shape in eigh_shapes} == {1}


MEASURED = ("dare_ties", "della", "breadcrumbs", "slerp", "knots_dare", "tsv", "iso_c")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", MEASURED)
def test_a_batch_takes_what_it_may(
    device: str, method: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six times the memory of one layer holds at least two, and is never exceeded."""
    sizes: list[int] = []
    honest = merging._Work._reduced

    def spied(work: Any, layers: Any, chooser: Any) -> Any:
        sizes.append(len(layers))
        return honest(work, layers, chooser)

    monkeypatch.setattr(merging._Work, "_reduced", spied)
    given = alike(7, (150, 110), 24)
    with metered() as most:
        monkeypatch.setattr(merging, "BATCH_BYTES", 0)
        merge(given, WEIGHTS, method, {}, fixed(8), dtype=dtype, device=device)
        limit = 6 * most()
        assert sizes == [1] * 7
        sizes.clear()
        monkeypatch.setattr(merging, "BATCH_BYTES", limit)
        merge(given, WEIGHTS, method, {}, fixed(8), dtype=dtype, device=device)
        assert most() <= limit
    assert 1 < max(sizes) < 7


@pytest.mark.parametrize("method", METHODS)
def test_nan_is_refused_by_name(device: str, method: str) -> None:
    one, two = alike(4)
    one.layers["unet.layer2"].blocks[0].up[0, 0] = math.nan
    with pytest.raises(VerificationError, match=r"^unet\.layer2: the weights hold NaN or Inf$"):
        merge([one, two], WEIGHTS, method, {}, fixed(4), device=device)


def test_overflow_is_refused_by_name(device: str) -> None:
    made = adapter(fine=fine(1), huge=fine(2) * 1e12)
    with pytest.raises(VerificationError, match=r"^unet\.huge: the factors overflow float16"):
        merge([made], [1], "ties", {}, fixed(2), dtype=torch.float16, device=device)


DEFINED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ties": lambda a, b: twins.elected([twins.trim(x, 0.5) for x in (a, b)], WEIGHTS),
    "magnitude_prune": lambda a, b: twins.trim(a, 0.5) + twins.trim(b, 0.5),
    "breadcrumbs": lambda a, b: twins.breadcrumbs(a, 0.9, 0.01) + twins.breadcrumbs(b, 0.9, 0.01),
    "knots_ties": lambda a, b: knots_ties(a, b),
    "tsv": lambda a, b: twins.tsv([a, b], (6, 6)),
    "iso_c": lambda a, b: twins.iso_c([a, b], 12),
    "slerp": lambda a, b: twins.slerp(a / 0.8, b, 1 / 1.8),
}


def knots_ties(a: Tensor, b: Tensor) -> Tensor:
    basis, shares = twins.knots_basis([a, b])
    return basis @ twins.elected([twins.trim(share, 0.5) for share in shares], WEIGHTS)


@pytest.mark.parametrize("method", DEFINED)
def test_what_is_defined(device: str, method: str) -> None:
    both = alike(3)
    made = merge(both, WEIGHTS, method, {}, fixed(80), dtype=torch.float64, device=device)
    for name in both[0].layers:
        matrices = [weight * dense(each.layers[name]) for each, weight in zip(both, WEIGHTS, strict=True)]
        expected = DEFINED[method](*matrices)
        assert float((dense(made.layers[name]) - expected).norm()) <= 1e-7 * float(expected.norm())


def test_a_target_that_needs_more_directions_goes_on_alone(eigh_shapes: list[torch.Size]) -> None:
    spectra = ([0.5**j for j in range(40)], [1.0] * 40, [0.7**j for j in range(40)])
    targets = torch.stack([dense(with_spectrum(each, (180, 170), seed=i)).float() for i, each in enumerate(spectra)])
    start = torch.randn(3, 8, 170, generator=generator(1))
    choose = energy(0.99).per_layer
    assert choose is not None
    together = reduce(targets, start, [choose] * 3, ["steep", "flat", "falling"], power=2)
    assert [shape[:2] for shape in eigh_shapes] == [(3, 32), (1, 64)]
    for target, begin, found in zip(targets, start, together, strict=True):
        (alone,) = reduce(target[None], begin[None], [choose], ["alone"], power=2)
        assert found.found.up.shape == alone.found.up.shape
        assert found.error == pytest.approx(alone.error, rel=1e-4)
        assert float((found.found.up @ found.found.down - target).norm()) == pytest.approx(found.error, rel=1e-4)


def test_targets_short_of_rank_spoil_no_other(eigh_shapes: list[torch.Size]) -> None:
    spectra = ([0.8**j for j in range(40)], [1.0, 0.5, 0.25], [0.0])
    targets = torch.stack([dense(with_spectrum(each, (180, 170), seed=i)).float() for i, each in enumerate(spectra)])
    start = torch.randn(3, 8, 170, generator=generator(1))
    found = reduce(targets, start, [lambda sigma: 8] * 3, ["full", "short", "zero"], power=1)
    assert [shape[:2] for shape in eigh_shapes] == [(3, 32)]
    assert [each.found.up.shape[1] for each in found] == [8, 3, 0]
    (alone,) = reduce(targets[:1], start[:1], [lambda sigma: 8], ["alone"], power=1)
    assert found[0].error == pytest.approx(alone.error, rel=1e-5)
    assert torch.allclose(found[1].found.up @ found[1].found.down, targets[1], atol=1e-6)
    assert [each.error < 1e-6 for each in found] == [False, True, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 2, 500, 999, 1000])
def test_thresholds_are_exact(dtype: torch.dtype, k: int) -> None:
    values = torch.randn(5, 1000, generator=generator(1), dtype=dtype).abs()
    values[1], values[2, ::2], values[3] = 0, 1, values[3] * 1e30
    values[4, :3] = torch.tensor([math.inf, 1e-42, torch.finfo(dtype).max])
    assert torch.equal(kth_magnitudes(values, k), values.sort(descending=True).values[:, k - 1])
