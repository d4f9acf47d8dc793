"""The search finds a known optimum, repeats itself, and never asks for a point twice."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping

import pytest

from lorahub.errors import LorahubError, UsageError
from lorahub.validate.searching import Range, Trial, best, search

TWO = {"style": Range(0.5, 1.5, 0.05), "lcm": Range(0.6, 1.2, 0.05)}
START = {"style": 0.8, "lcm": 1.0}


def hill(weights: Mapping[str, float]) -> float:
    """1 at style 1.1, lcm 0.85."""
    return 1 - (weights["style"] - 1.1) ** 2 - 2 * (weights["lcm"] - 0.85) ** 2


def test_it_comes_near_a_known_optimum() -> None:
    trials = search(hill, TWO, START, evaluations=40)
    assert trials[0] == Trial(START, hill(START)), "the expression as it is comes first"
    assert len(trials) == 40
    assert hill(trials[best(trials)].weights) > 0.99


def test_it_minimises_too() -> None:
    trials = search(lambda weights: -hill(weights), TWO, START, evaluations=40, maximise=False)
    assert hill(trials[best(trials, maximise=False)].weights) > 0.99


def test_the_same_seed_gives_the_same_trials_and_another_one_others() -> None:
    first = search(hill, TWO, START, evaluations=12, seed=3)
    assert search(hill, TWO, START, evaluations=12, seed=3) == first
    assert search(hill, TWO, START, evaluations=12, seed=4) != first


def test_a_longer_search_begins_like_itself() -> None:
    asked: list[Mapping[str, float]] = []

    def interrupted(weights: Mapping[str, float]) -> float:
        if len(asked) == 7:
            raise KeyboardInterrupt
        asked.append(weights)
        return hill(weights)

    with pytest.raises(KeyboardInterrupt):
        search(interrupted, TWO, START, evaluations=12)
    again = search(hill, TWO, START, evaluations=12)
    assert [trial.weights for trial in again[:7]] == asked, "so pictures that were kept are met again"
    assert search(hill, TWO, START, evaluations=9) == again[:9]


def test_every_point_once_and_all_of_a_small_range() -> None:
    trials = search(lambda weights: weights["lcm"], {"lcm": Range(0.9, 1.1, 0.05)}, {"lcm": 1.0}, evaluations=99)
    assert sorted(trial.weights["lcm"] for trial in trials) == [0.9, 0.95, 1.0, 1.05, 1.1]
    points = [tuple(trial.weights.values()) for trial in search(hill, TWO, START, evaluations=60)]
    assert len(set(points)) == 60


def test_a_start_off_the_grid_is_evaluated_as_it_is() -> None:
    trials = search(lambda weights: -weights["lcm"], {"lcm": Range(0.5, 0.7, 0.1)}, {"lcm": 1.03}, evaluations=9)
    assert trials[0].weights["lcm"] == 1.03
    assert sorted(trial.weights["lcm"] for trial in trials[1:]) == [0.5, 0.6, 0.7]


def test_points_without_a_score_are_passed_over() -> None:
    def broken(weights: Mapping[str, float]) -> float | None:
        return None if weights["lcm"] > 0.95 else hill(weights)

    trials = search(broken, TWO, START, evaluations=30)
    assert trials[0].value is None
    assert trials[best(trials)].weights["lcm"] <= 0.95
    assert best([trials[0]]) == 0


@pytest.mark.parametrize(("low", "high", "step"), [(1, 1, 0.1), (1, 0.5, 0.1), (0, 1, 0), (0, 1, -1), (0, 1, 2)])
def test_a_range_needs_room(low: float, high: float, step: float) -> None:
    with pytest.raises(UsageError, match="cannot vary from"):
        Range(low, high, step)


def test_a_range_ends_where_it_says() -> None:
    assert [Range(0.5, 1.5, 0.1).at(index) for index in (0, 1, 10)] == [0.5, 0.6, 1.5]
    assert Range(0.5, 1.5, 0.1).last == 10
    assert Range(0, 1, 0.3).last == 3


def test_optuna_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.INFO)
    search(hill, TWO, START, evaluations=3)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == logging.INFO, "as it was"


def test_without_optuna_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(LorahubError, match=r"tune needs optuna: pip install 'lorahub-toolkit\[validate\]'"):
        search(hill, TWO, START, evaluations=2)
