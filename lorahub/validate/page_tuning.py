"""The page of a tuning: the expression to use, the surface of the score, and the pictures behind it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from markupsafe import Markup

from lorahub.validate.cells import Generation
from lorahub.validate.page import fill, write_text_page
from lorahub.validate.page_figure import draw_figure
from lorahub.validate.page_scores import Drawn, Plots, interval, plain
from lorahub.validate.plots import Line, Point, number, plot, surface
from lorahub.validate.scores import SCORES
from lorahub.validate.tuning import Tuning


def write_tuning(tuning: Tuning, path: str | Path) -> Path:
    """Write `render_tuning` to a file, whole or not at all; one that is there is replaced. Returns the path.

    Raises NotFoundError for a picture that is no longer where it was drawn.
    """
    return write_text_page(render_tuning(tuning), path)


def render_tuning(tuning: Tuning) -> str:
    """The page as text. With one dial a slider shows the pictures of every trial, with several those of the best."""
    names = [dial.name for dial in tuning.dials]
    rows = [[*names, tuning.score]] + [
        [*(plain(trial.weights[name]) for name in names), interval(score)]
        for trial, score in zip(tuning.trials, tuning.scores, strict=True)
    ]
    return fill(
        "tuning.html",
        command=tuning.command,
        versions=tuning.versions,
        tuning=tuning,
        conclusion=_conclusion(tuning),
        surface=_surface(tuning),
        figure=draw_figure(_shown(tuning)),
        rows=rows,
    )


def _conclusion(tuning: Tuning) -> str:
    value = f"{tuning.score} {interval(tuning.scores[tuning.best])}"
    if tuning.best == 0:
        return f"{value}: nothing that was tried is better than the expression as it was written."
    written = f"{value}, as it was written {interval(tuning.scores[0])}"
    if tuning.gain is None:
        return f"{written}."
    mean, low, high = tuning.gain
    said = f"{written}; better by {number(mean)} [{number(low)}, {number(high)}] on the same prompts and seeds."
    return said if low > 0 else f"{said} That may be chance: more prompts or seeds would tell."


def _surface(tuning: Tuning) -> Plots:
    """The score over every dial; with two of them also as a map."""
    kind = SCORES[tuning.score]
    figures = []
    for dial in tuning.dials:
        lines = [
            Line(label, tuple(_point(tuning, index, dial.name) for index in chosen), joined=False)
            for label, chosen in _groups(tuning).items()
        ]
        svg = plot(lines, x=f"λ of {dial.name}", y=tuning.score)
        figures.append(Drawn(dial.name, Markup(svg), f"{kind.title}; {kind.better} is better."))
    scored = [index for index, trial in enumerate(tuning.trials) if trial.value is not None]
    if len(tuning.dials) == 2:
        first, second = (dial.name for dial in tuning.dials)
        svg = surface(
            [_point(tuning, index, second) for index in scored],
            x=f"λ of {first}",
            y=f"λ of {second}",
            across=[tuning.trials[index].weights[first] for index in scored],
            best=scored.index(tuning.best),
        )
        figures.append(
            Drawn("Both", Markup(svg), f"The fuller a dot, the higher its {tuning.score}; the best is ringed.")
        )
    return Plots("What was tried", tuple(_groups(tuning)), tuple(figures))


def _groups(tuning: Tuning) -> dict[str, list[int]]:
    """Trials with a score, by what they are."""
    scored = [index for index, trial in enumerate(tuning.trials) if trial.value is not None]
    groups = {
        "candidates": [index for index in scored if index not in (0, tuning.best)],
        "best": [tuning.best],
        "as it was written": [index for index in scored if index == 0 != tuning.best],
    }
    return {label: chosen for label, chosen in groups.items() if chosen}


def _point(tuning: Tuning, index: int, name: str) -> Point:
    trial, score = tuning.trials[index], tuning.scores[index]
    label = ", ".join(f"{key} {plain(value)}" for key, value in trial.weights.items())
    return Point(trial.weights[name], trial.value or 0.0, score.low, score.high, f"{label}: {interval(score)}")


def _shown(tuning: Tuning) -> Generation:
    """All pictures where a slider chooses among them; else the references, the expression as written and the best."""
    made = tuning.generation
    if len(tuning.dials) == 1:
        return made
    kept = {made.reference, made.base_reference, tuning.scores[0].cell, tuning.scores[tuning.best].cell}
    return replace(
        made,
        pictures=tuple(picture for picture in made.pictures if picture.cell in kept),
        scores=tuple(score for score in made.scores if score.cell in kept),
    )
