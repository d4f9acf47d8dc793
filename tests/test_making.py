"""What combine, resize and convert share: merges from Python, and the account of what was made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lorahub as lh
from lorahub import header
from lorahub.errors import ConflictError, NotFoundError, UsageError
from lorahub.making import Combination, Wish, make
from tests.workspace.conftest import write_adapter


@pytest.fixture
def pair(tmp_path: Path) -> tuple[lh.Adapter, lh.Adapter]:
    paths = [write_adapter(tmp_path / f"{name}.safetensors", seed=seed, rank=3) for seed, name in enumerate("ab", 1)]
    return lh.load(paths[0]), lh.load(paths[1])


def test_merged_names_its_method_weights_and_settings(pair: tuple[lh.Adapter, lh.Adapter]) -> None:
    made = lh.merged(pair, [1, 0.5], method="slerp")
    assert isinstance(made, lh.Truncated)
    dare = lh.merged(pair, method="dare_linear", rule=lh.fixed(4), density=0.25, seed=7)
    again = lh.merged(pair, method="dare_linear", rule=lh.fixed(4), density=0.25, seed=7)
    other = lh.merged(pair, method="dare_linear", rule=lh.fixed(4), density=0.25, seed=8)
    assert lh.norm(dare - again) == pytest.approx(0, abs=1e-6)
    assert lh.cosine(dare, other) < 0.99
    assert {layer.rank for layer in dare.layers.values()} == {4}


def test_addition_is_a_method_too(pair: tuple[lh.Adapter, lh.Adapter]) -> None:
    made = lh.merged(pair, [2, -1], method="linear")
    assert lh.norm(made - (2 * pair[0] - pair[1])) == 0
    assert isinstance(lh.merged(pair, method="linear", rule=lh.fixed(1)), lh.Truncated)


def test_what_does_not_fit_is_refused(pair: tuple[lh.Adapter, lh.Adapter]) -> None:
    with pytest.raises(UsageError, match="got 1 for 2"):
        lh.merged(pair, [1], method="slerp")
    with pytest.raises(UsageError, match="at least one adapter"):
        lh.merged([], method="slerp")
    with pytest.raises(UsageError, match="has no setting 'densty'"):
        lh.merged(pair, method="ties", densty=0.5)
    with pytest.raises(UsageError, match="density must be"):
        lh.merged(pair, method="ties", density=1.5)


def test_a_normalised_file_has_the_length_and_tells_the_truth(
    pair: tuple[lh.Adapter, lh.Adapter], tmp_path: Path
) -> None:
    job = Combination([(1.0, pair[0]), (-0.5, pair[1])], "ties", {"density": "0.4"}, length=3.0)
    made = make(job, tmp_path / "c.safetensors", Wish(rank=5, dtype="fp32"))
    written = lh.load(tmp_path / "c.safetensors")
    assert lh.norm(written) == pytest.approx(3.0, rel=1e-5)
    assert made.factor is not None
    assert made.relative_error is not None
    # Scaled, the whole has norm 3 / sqrt(1 - error²), of which `error` is left out.
    assert made.error == pytest.approx(3.0 * made.relative_error / (1 - made.relative_error**2) ** 0.5, rel=1e-3)
    assert (made.method, made.settings["density"], made.rank_before) == ("ties", 0.4, 640)
    told = json.loads(header.read(tmp_path / "c.safetensors").metadata["lorahub.provenance"])
    assert told["method"] == "ties"
    assert told["weights"] == [1.0, -0.5]
    assert told["settings"] == {
        "merge": {"density": 0.4, "elect": "sum", "divide": "count", "rule": "fixed(5)"},
        "normalised": {"factor": made.factor},
    }
    assert [parent["name"] for parent in told["parents"]] == ["a", "b"]


def test_an_output_that_is_in_the_way_is_told_before_anything_is_computed(
    pair: tuple[lh.Adapter, lh.Adapter], tmp_path: Path
) -> None:
    steps: list[int] = []
    job = Combination([(1.0, one) for one in pair], "ties")
    with pytest.raises(ConflictError, match="exists already"):
        make(job, tmp_path / "a.safetensors", Wish(rank=2), progress=lambda done, total: steps.append(done))
    with pytest.raises(NotFoundError, match="no such folder"):
        make(job, tmp_path / "no" / "c.safetensors", Wish(rank=2), progress=lambda done, total: steps.append(done))
    assert steps == []


@pytest.mark.parametrize("method", ["ties", "iso_c"])
@pytest.mark.parametrize("format", ["kohya", "peft"])
def test_a_size_is_kept_by_merges_too(
    pair: tuple[lh.Adapter, lh.Adapter], tmp_path: Path, method: str, format: str
) -> None:
    made = make(
        Combination([(1.0, one) for one in pair], method), tmp_path / "out", Wish(max_size=40_000, format=format)
    )
    assert 30_000 < made.saved.size <= 40_000
    assert made.rule == "budget(40000)"
