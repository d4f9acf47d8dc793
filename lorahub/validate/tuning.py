"""Tune: which coefficients of an expression score best at a number of steps, within a number of pictures.

The rule: every candidate is drawn from the same noise and compared with the same many-step pictures, which have the
coefficients of the expression as it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorahub.errors import LorahubError, UsageError
from lorahub.references import configured
from lorahub.validate.base_model import BaseModel, pixels_of
from lorahub.validate.cells import COMBINATION, Cell, Generation, Picture, Plan, Score, Sweep
from lorahub.validate.dials import Dial, by_block, dials_of, spelled
from lorahub.validate.generating import Drawing, Term, gathered, open_drawing
from lorahub.validate.judges import Judges, find_judges
from lorahub.validate.opening import open_subject
from lorahub.validate.picturing import Pictures, in_folder, planned
from lorahub.validate.report import installed
from lorahub.validate.scores import SCORES, interval
from lorahub.validate.searching import Trial, Weights, best, check_installed, search

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Progress = Callable[[int, int, str], None]

TUNABLE = tuple(name for name, kind in SCORES.items() if kind.better and name != "seconds")
"""Scores that have a better side, and that coefficients can change."""


@dataclass(frozen=True)
class Tuning:
    """What was tried and what is best.

    subject: the expression as it was written. dials: what was turned, and how far. trials: in the order they were made,
    the expression as it was written first; scores: theirs. best: index of the best trial.
    expression: the one to use; weights: what `combine --weight` takes besides, by block.
    gain: mean difference of the best to the expression as it was written, picture by picture, positive when better, with
    its 95 % interval; None for a score of the whole set, or when the best is the expression as it was written.
    generation: all pictures and scores.
    """

    subject: str
    score: str
    steps: int
    dials: tuple[Dial, ...]
    trials: tuple[Trial, ...]
    scores: tuple[Score, ...]
    best: int
    expression: str
    weights: tuple[tuple[str, str, float], ...]
    gain: tuple[float, float, float] | None
    generation: Generation
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=installed)

    def to_json(self) -> dict[str, Any]:
        """Every field by name; trials with their scores."""
        return {
            "subject": self.subject,
            "score": self.score,
            "better": SCORES[self.score].better,
            "steps": self.steps,
            "ranges": {dial.name: vars(dial.range) for dial in self.dials},
            "trials": [
                {"coefficients": dict(trial.weights), "value": score.value, "low": score.low, "high": score.high}
                for trial, score in zip(self.trials, self.scores, strict=True)
            ],
            "best": self.best,
            "expression": self.expression,
            "weights": [list(weight) for weight in self.weights],
            "gain": None if self.gain is None else dict(zip(("value", "low", "high"), self.gain, strict=True)),
            "drawn": len(self.generation.pictures),
            "generation": self.generation.to_json(),
            "ran": self.command,
            "versions": dict(self.versions),
        }


def tune(
    subject: str,
    base_model: str | Path | DiffusionPipeline,
    wish: Pictures,
    *,
    score: str = "texture",
    vary: Sequence[str] = (),
    budget: int = 100,
    per_block: bool = False,
    seed: int = 0,
    base: str | None = None,
    base_config: str | Path | None = None,
    accelerators: Collection[str] = (),
    device: str = "auto",
    allow_pickle: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> Tuning:
    """Search the coefficients of an expression for the best score at `wish.steps`, which is one number.

    score: of `TUNABLE`. vary: see `dials.dials_of`. budget: pictures in all, the many-step ones included. per_block: turn
    the blocks of each term by themselves. seed: of the search. base: of the adapters, where several fit. base_config,
    accelerators: as `validate` takes them.
    Pictures in `wish.folder` that were drawn before are taken, and a search that is repeated asks for the same ones;
    without a folder they are there for as long as the result is.
    Raises UsageError for a request that cannot be met, LorahubError when optuna is missing or the expression is no
    vector, and what loading and drawing raise.
    """
    check_installed()
    _check(wish, score)
    held = BaseModel(base_model, device, pixels_of(wish), base_config)
    terms, plan = _planned(
        subject, wish, base=base, base_model=held, accelerators=accelerators, allow_pickle=allow_pickle
    )
    own = {term.name: term.weight for term in terms}
    dials = dials_of(terms, vary)
    if per_block:
        terms, dials = by_block(terms, dials)
    judges = _judges(wish, score)

    def tuned(folder: Path) -> Tuning:
        drawing = open_drawing(held, terms, plan, folder, judges=judges)
        easel = _Easel(drawing, score, budget, progress)
        trials = search(
            easel.evaluate,
            {dial.name: dial.range for dial in dials},
            {dial.name: dial.start for dial in dials},
            evaluations=easel.evaluations,
            maximise=SCORES[score].better == "higher",
            seed=seed,
        )
        made = replace(easel.generation(dials), kept=wish.folder is not None)
        return _told(subject, own, dials, trials, easel, made, command)

    return in_folder(wish.folder, tuned)


def _told(
    subject: str,
    own: Mapping[str, float],
    dials: Sequence[Dial],
    trials: tuple[Trial, ...],
    easel: _Easel,
    generation: Generation,
    command: str,
) -> Tuning:
    """The result of a search. own: the weights as they were written."""
    maximise = SCORES[easel.score].better == "higher"
    index = best(trials, maximise=maximise)
    expression, weights = spelled(own, dials, trials[index].weights)
    return Tuning(
        subject=subject,
        score=easel.score,
        steps=generation.plan.steps[0],
        dials=tuple(dials),
        trials=trials,
        scores=tuple(easel.scores),
        best=index,
        expression=expression,
        weights=tuple(weights),
        gain=_gain(easel.scores[0], easel.scores[index], maximise),
        generation=generation,
        command=command,
    )


def _check(wish: Pictures, score: str) -> None:
    if score not in TUNABLE:
        raise UsageError(f"cannot tune for {score!r}: expected one of {', '.join(TUNABLE)}")
    if len(wish.steps) != 1:
        raise UsageError(f"tune takes one number of steps, got {', '.join(map(str, wish.steps))}")


def _planned(subject: str, wish: Pictures, **how: Any) -> tuple[list[Term], Plan]:
    """how: as `open_subject` takes it."""
    with configured() as workspace:
        opened = open_subject(subject, workspace=workspace, **how)
        if opened.adapter is None:
            raise LorahubError(f"nothing can be drawn: {opened.combined[1]}")
        return planned(opened, wish)


def _judges(wish: Pictures, score: str) -> Judges:
    """The networks at hand. Raises UsageError when the one that the score needs is not."""
    judges = find_judges(wish.feature_model, wish.clip_model, wish.lpips_model)
    missing = judges.reasons.get({"frechet": "features"}.get(score, score))
    if missing:
        raise UsageError(f"cannot tune for {score}: {missing}")
    return judges


class _Easel:
    """Draws and scores one candidate after another, and keeps what it drew. Raises UsageError for a budget too small."""

    def __init__(self, drawing: Drawing, score: str, budget: int, progress: Progress | None) -> None:
        self.scores: list[Score] = []
        self.score, self._drawing, self._progress = score, drawing, progress
        self._cells: dict[Cell, tuple[Picture, ...]] = {}
        self._all: list[Score] = []
        references = list(dict.fromkeys((drawing.scorer.reference, drawing.scorer.base_reference)))
        self._each = len(drawing.plan.prompts) * len(drawing.plan.seeds)
        self._total = budget // self._each
        self.evaluations = self._total - len(references)
        if self.evaluations < 2:
            raise UsageError(
                f"a budget of {budget} pictures is too small: the many-step pictures and two candidates take "
                f"{(len(references) + 2) * self._each}, {self._each} each"
            )
        self._candidate = next(
            cell for cell in drawing.cells if cell.row == COMBINATION and cell not in (references[0], references[-1])
        )
        self._draw(references)

    def evaluate(self, weights: Weights) -> float | None:
        """The score of the combination at these coefficients. Raises UsageError when the first one cannot be had."""
        coefficients = tuple((dict(self._candidate.coefficients) | dict(weights)).items())
        cell = replace(self._candidate, coefficients=coefficients)
        score = next((score for score in self._draw([cell]) if score.name == self.score), None)
        if score is None:
            raise UsageError(f"cannot tune for {self.score}: the expression has no terms but accelerators")
        if score.value is None and not self.scores:
            raise UsageError(f"cannot tune for {self.score}: the expression as it is written: {score.reason}")
        self.scores.append(score)
        return score.value

    def generation(self, dials: Sequence[Dial]) -> Generation:
        """All that was drawn; a sweep where one dial was turned."""
        plan = self._drawing.plan
        if len(dials) == 1:
            values = {dict(cell.coefficients)[dials[0].name] for cell in self._cells if cell.row == COMBINATION}
            plan = replace(plan, sweep=Sweep(dials[0].name, tuple(sorted(values))))
        return gathered(replace(self._drawing, plan=plan), self._cells, self._all)

    def _draw(self, cells: Sequence[Cell]) -> tuple[Score, ...]:
        before = len(self._cells) * self._each

        def advance(done: int, total: int) -> None:
            if self._progress is not None:
                self._progress(before + done, self._total * self._each, "pictures")

        drawn = self._drawing.draw(cells, advance)
        scores = self._drawing.scorer.score(drawn)
        self._cells |= drawn
        self._all += scores
        return scores


def _gain(start: Score, found: Score, maximise: bool) -> tuple[float, float, float] | None:
    if start is found or not (start.values and found.values):
        return None
    apart = (np.array(found.values) - np.array(start.values)) * (1 if maximise else -1)
    return float(apart.mean()), *interval(apart)
