"""truncate: the rules, the reports, the dtypes. That it is optimal in hard cases is in test_hard_cases.py."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from lorahub.algebra import LowRank, RankRule, budget, energy, fixed, norm, relative, spectrum, truncate
from lorahub.algebra.recipe import Step
from lorahub.errors import VerificationError

from .making import adapter, best_error, dense, random_layer, reloaded, single, with_spectrum

DECAY = [i**-0.9 for i in range(1, 33)]


def error_of(layer: LowRank, short: LowRank) -> float:
    return float((dense(layer) - dense(short)).norm())


@pytest.mark.parametrize(
    "rule",
    [fixed(1), fixed(7), fixed(40), energy(0.5), energy(0.9), energy(0.999), relative(0.3), relative(0.01)],
    ids=str,
)
def test_rules_choose_from_the_dense_singular_values(rule: RankRule) -> None:
    layer = with_spectrum(DECAY, (90, 70), form="mixed", dtype=torch.float16)
    assert rule.per_layer is not None
    expected = rule.per_layer(torch.linalg.svdvals(dense(layer))[:32])
    for dtype in (torch.float32, torch.float64):
        short = truncate(single(layer), rule, dtype=dtype)
        assert short.layers["unet.layer"].rank == short.report["unet.layer"].rank == expected


def test_budget_ranks_all_layers_together() -> None:
    strong = with_spectrum([10.0 * value for value in DECAY], (60, 50), seed=1)
    weak, wide = with_spectrum(DECAY, (60, 50), seed=3), with_spectrum(DECAY, (60, 1500), seed=5)
    whole = adapter(strong=strong, weak=weak, wide=wide, none=LowRank((60, 50), ()))
    rule = budget(4000, overhead=0)
    assert rule.overall is not None
    spectra = {name: torch.linalg.svdvals(dense(layer)) for name, layer in whole.layers.items()}
    expected = rule.overall(spectra, {name: layer.matrix_shape for name, layer in whole.layers.items()})
    short = truncate(whole, rule, dtype=torch.float64)
    assert {name: report.rank for name, report in short.report.items()} == expected
    assert expected["unet.strong"] > expected["unet.weak"] > 0
    assert expected["unet.wide"] == expected["unet.none"] == 0
    assert set(short.layers) == {"unet.strong", "unet.weak"}
    assert short.parameters * 2 <= 4000
    left_out = sum(float(spectra[name][rank:].square().sum()) for name, rank in expected.items())
    assert short.error == pytest.approx(math.sqrt(left_out), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_reported_errors_are_the_dense_errors(dtype: torch.dtype) -> None:
    layers = {
        "q": with_spectrum(DECAY, (300, 200), seed=1, form="mixed", dtype=torch.float16),
        "conv": with_spectrum(DECAY, (40, 30, 3, 3), seed=4, form="up", dtype=torch.float16),
        "small": random_layer((12, 9), 20, seed=7),
    }
    whole = adapter(**layers)
    short = truncate(whole, fixed(8), dtype=dtype)
    made = {}
    for key, layer in layers.items():
        report, kept = short.report[f"unet.{key}"], short.layers[f"unet.{key}"]
        made[key] = best_error(dense(layer), 8)
        assert (report.rank_before, report.rank) == (layer.rank, 8)
        assert kept.shape == layer.shape
        assert kept.blocks[0].up.dtype == kept.blocks[0].down.dtype == dtype
        assert report.norm == pytest.approx(float(dense(layer).norm()), rel=1e-6)
        assert report.error == pytest.approx(made[key], rel=1e-6)
        # rounding is independent of what was left out, so squares add
        assert error_of(layer, kept) == pytest.approx(math.hypot(report.error, report.rounding), rel=1e-5)
    assert short.error == pytest.approx(math.hypot(*made.values()), rel=1e-6)
    assert short.relative_error == pytest.approx(short.error / norm(whole), rel=1e-6)
    assert short.rounding == pytest.approx(math.hypot(*(report.rounding for report in short.report.values())))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", ["balanced", "up", "mixed"])
def test_the_rounding_that_is_reported_is_the_rounding_that_happens(dtype: torch.dtype, form: str) -> None:
    layer = with_spectrum(DECAY, (400, 300), form=form) * 3.0
    short, exact = (truncate(single(layer), fixed(16), dtype=kind) for kind in (dtype, torch.float64))
    truth = error_of(exact.layers["unet.layer"], short.layers["unet.layer"])
    assert short.rounding == pytest.approx(truth, rel=0.05)
    assert exact.rounding == 0.0


def test_factors_that_overflow_are_refused_with_the_way_out() -> None:
    layer = random_layer((40, 30), 4) * 1e9
    with pytest.raises(
        VerificationError, match=r"^unet\.layer: the factors overflow float16: save as bfloat16 or float32"
    ):
        truncate(single(layer), fixed(2), dtype=torch.float16)
    assert truncate(single(layer), fixed(2), dtype=torch.bfloat16).rounding > 0


def test_balanced_factors_keep_half_precision_from_overflow_and_underflow() -> None:
    up, down = random_layer((40, 30), 4).blocks[0].up * 1e-6, random_layer((40, 30), 4).blocks[0].down * 1e6
    short = truncate(single(LowRank.of(up, down)), fixed(4), dtype=torch.float16)
    assert short.rounding < 1e-3 * short.report["unet.layer"].norm


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("factor", ["up", "down"])
@pytest.mark.parametrize("rank", [3, 25])  # fewer columns than rows, and more
def test_weights_that_are_no_numbers_are_refused_by_layer(bad: float, factor: str, rank: int) -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        layer = random_layer((20, 30), rank, dtype=dtype)
        getattr(layer.blocks[0], factor)[1, 2] = bad
        for out in (torch.float32, torch.float64):
            with pytest.raises(VerificationError, match=r"^unet\.broken: the weights hold NaN or Inf$"):
                truncate(adapter(fine=random_layer((20, 30), 2), broken=layer), fixed(2), dtype=out)
        with pytest.raises(VerificationError, match=r"^unet\.broken: the weights hold NaN or Inf$"):
            truncate(adapter(broken=layer), budget(1000))


def test_everything_else_passes_unchanged_and_progress_is_told() -> None:
    whole = dataclasses.replace(
        adapter(q=random_layer((20, 30), 3), zero=random_layer((20, 30), 3) * 0, k=random_layer((9, 8), 2)),
        offsets={"unet.q.bias": torch.ones(3)},
        embeddings={"<s1>": torch.ones(1, 4)},
    )
    calls: list[tuple[int, int]] = []
    short = truncate(whole, fixed(2), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert list(short.layers) == ["unet.q", "unet.k"]
    assert short.report["unet.zero"].norm == short.report["unet.zero"].rank == 0
    assert (short.base, short.offsets, short.embeddings) == (whole.base, whole.offsets, whole.embeddings)
    assert short.recipe == Step("truncate", {"rule": "fixed(2)"}, (whole.recipe,))


def test_the_inputs_are_left_as_they_were() -> None:
    layer = random_layer((20, 30), 3, dtype=torch.float32)
    before = [block.up.clone() for block in layer.blocks] + [block.down.clone() for block in layer.blocks]
    truncate(single(0.5 * layer), fixed(2))
    after = [block.up for block in layer.blocks] + [block.down for block in layer.blocks]
    assert all(one.equal(other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("rule", [fixed(4), energy(0.9), relative(0.1), budget(10**6)], ids=str)
def test_an_empty_or_zero_adapter_stays_zero(rule: RankRule) -> None:
    stored_zeros = LowRank.of(torch.zeros(20, 4), torch.zeros(4, 30))
    for zero in (adapter(), adapter(q=LowRank((20, 30), ())), adapter(q=stored_zeros)):
        short = truncate(zero, rule)
        assert not short.layers
        assert short.error == short.rounding == short.relative_error == 0.0


def test_truncating_again_to_the_same_rank_changes_nothing() -> None:
    once = truncate(single(with_spectrum(DECAY, (90, 70), form="mixed")), fixed(8), dtype=torch.float64)
    again = truncate(once, fixed(8), dtype=torch.float64)
    assert again.error == 0.0
    assert error_of(once.layers["unet.layer"], again.layers["unet.layer"]) < 1e-12


def test_spectrum_is_that_of_the_dense_matrix_without_rounding_noise() -> None:
    layer = with_spectrum(DECAY, (90, 70), form="mixed")
    doubled = layer + reloaded(layer)
    torch.testing.assert_close(spectrum(layer), torch.tensor(DECAY, dtype=torch.float64), rtol=1e-9, atol=0)
    torch.testing.assert_close(spectrum(doubled), 2 * torch.tensor(DECAY, dtype=torch.float64), rtol=1e-9, atol=0)
    assert spectrum(layer - layer).tolist() == []
    assert spectrum(layer - reloaded(layer)).tolist() == []
