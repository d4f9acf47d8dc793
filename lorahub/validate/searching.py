"""The search for the best coefficients within a number of evaluations: optuna proposes, this module keeps the books.

The rule: the search is a function of its seed and of the scores, so one that is repeated, or made longer, proposes the
same points; no point is evaluated twice.
"""

from __future__ import annotations

import importlib.util
import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorahub.errors import LorahubError, UsageError

Weights = Mapping[str, float]
_Point = tuple[int, ...]


@dataclass(frozen=True)
class Range:
    """Coefficients from `low` to `high`, both included, `step` apart. Raises UsageError when there are none."""

    low: float
    high: float
    step: float

    def __post_init__(self) -> None:
        if not (self.low < self.high and 0 < self.step <= self.high - self.low):
            raise UsageError(
                f"cannot vary from {self.low:g} to {self.high:g} by {self.step:g}: expected FROM below TO, and BY above "
                "0 and not above their difference"
            )

    @property
    def last(self) -> int:
        """Index of the highest coefficient."""
        return int((self.high - self.low) / self.step + 1e-9)

    def at(self, index: int) -> float:
        return round(self.low + index * self.step, 10)

    def nearest(self, value: float) -> int:
        return min(max(round((value - self.low) / self.step), 0), self.last)


@dataclass(frozen=True)
class Trial:
    """Coefficients and what they scored; None where the score cannot be had."""

    weights: Weights
    value: float | None


def check_installed() -> None:
    """Raises LorahubError, which says what to install, when optuna is missing."""
    if importlib.util.find_spec("optuna") is None:
        raise LorahubError("tune needs optuna: pip install 'lorahub-toolkit[validate]'")


def search(
    evaluate: Callable[[Weights], float | None],
    ranges: Mapping[str, Range],
    start: Weights,
    *,
    evaluations: int,
    maximise: bool = True,
    seed: int = 0,
) -> tuple[Trial, ...]:
    """Trials in the order they were made: `start` as it is, then points of the ranges that a tree-structured Parzen
    estimator proposes (Bergstra et al., NeurIPS 2011).

    evaluate: coefficient of every name -> score. evaluations: how many, `start` among them; fewer where the ranges have
    fewer points. Raises LorahubError when optuna is missing.
    """
    check_installed()
    import optuna

    study = _study(optuna, "maximize" if maximise else "minimize", seed, 4 + 2 * len(ranges))
    axes = {name: optuna.distributions.IntDistribution(0, span.last) for name, span in ranges.items()}
    lengths = [span.last + 1 for span in ranges.values()]
    trials = [Trial(dict(start), evaluate(start))]
    seen: set[_Point] = set()
    first = tuple(span.nearest(start[name]) for name, span in ranges.items())
    if _weights(ranges, first) == dict(start):
        seen.add(first)
        if trials[0].value is not None:
            params = dict(zip(ranges, first, strict=True))
            study.add_trial(optuna.trial.create_trial(params=params, distributions=axes, value=trials[0].value))
    while len(trials) < evaluations and len(seen) < math.prod(lengths):
        asked = study.ask(axes)
        point = tuple(asked.params[name] for name in ranges)
        if point in seen:
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
            point = _nearest_unseen(point, seen, lengths)
            study.enqueue_trial(dict(zip(ranges, point, strict=True)))
            asked = study.ask(axes)
        seen.add(point)
        weights = _weights(ranges, point)
        trials.append(Trial(weights, evaluate(weights)))
        value = trials[-1].value
        study.tell(asked, value, state=optuna.trial.TrialState.FAIL if value is None else None)
    return tuple(trials)


def best(trials: Sequence[Trial], *, maximise: bool = True) -> int:
    """The index of the one with the best score, the first of equals; 0 where none has a score."""
    sign = 1 if maximise else -1
    values = [-math.inf if trial.value is None else sign * trial.value for trial in trials]
    return values.index(max(values))


def _study(optuna: Any, direction: str, seed: int, random: int) -> Any:
    """In memory and silent. random: how many points are drawn at random before the estimator proposes."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=random)
        return optuna.create_study(direction=direction, sampler=sampler)
    finally:
        optuna.logging.set_verbosity(before)


def _weights(ranges: Mapping[str, Range], point: _Point) -> dict[str, float]:
    return {name: span.at(index) for (name, span), index in zip(ranges.items(), point, strict=True)}


def _nearest_unseen(point: _Point, seen: Collection[_Point], lengths: Sequence[int]) -> _Point:
    """By breadth first, one step along one axis at a time; there must be one."""
    queue, met = deque([point]), {point}
    while True:
        here = queue.popleft()
        if here not in seen:
            return here
        for axis, length in enumerate(lengths):
            for index in (here[axis] - 1, here[axis] + 1):
                beside = (*here[:axis], index, *here[axis + 1 :])
                if 0 <= index < length and beside not in met:
                    met.add(beside)
                    queue.append(beside)
