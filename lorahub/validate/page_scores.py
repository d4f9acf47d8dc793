"""The scores of a generation as plots and as a table: what the page shows under its pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lorahub.validate.cells import BASE, COMBINATION, STYLE, Cell, Generation, Score
from lorahub.validate.plots import Line, Point, number, plot
from lorahub.validate.scores import SCORES

ROWS = (COMBINATION, STYLE, BASE)
"""In the order in which the page shows them."""


@dataclass(frozen=True)
class Drawn:
    """One plot."""

    title: str
    svg: Markup
    caption: str


@dataclass(frozen=True)
class Plots:
    """Plots that share a legend."""

    title: str
    legend: tuple[str, ...]
    figures: tuple[Drawn, ...]


def over_steps(made: Generation) -> Plots:
    """Every score over the steps, at the coefficients of the expression: the first ones that are drawn."""
    first: dict[tuple[str, str, int], Cell] = {}
    for cell in made.cells:
        first.setdefault((cell.row, cell.sampler, cell.steps), cell)
    lines: dict[str, list[Cell]] = {}
    for cell in sorted(first.values(), key=lambda cell: ROWS.index(cell.row)):
        lines.setdefault(f"{cell.row}, {cell.sampler}", []).append(cell)
    return _plots(made, "Scores over steps", "steps", lines, lambda cell: float(cell.steps))


def over_weights(made: Generation) -> Plots:
    """Every score of the combination over the swept coefficient, a line for each number of steps."""
    lines: dict[str, list[Cell]] = {}
    for cell in sorted(made.cells, key=lambda cell: cell.steps):
        if weight_of(made, cell) is not None:
            lines.setdefault(f"{cell.steps} step{'s' if cell.steps > 1 else ''}", []).append(cell)
    term = made.plan.sweep.term if made.plan.sweep else ""
    return _plots(made, f"Scores over λ of {term}", "λ", lines, lambda cell: weight_of(made, cell) or 0.0)


def weight_of(made: Generation, cell: Cell) -> float | None:
    """The swept coefficient of a cell that is drawn at every value of the sweep, else None."""
    if made.plan.sweep is None or cell.row != COMBINATION or is_reference(made, cell):
        return None
    return dict(cell.coefficients).get(made.plan.sweep.term)


def is_reference(made: Generation, cell: Cell) -> bool:
    """Whether others are compared with it."""
    return cell in (made.reference, made.base_reference)


def interval(score: Score) -> str:
    """A score as text: value [low, high]."""
    if score.value is None:
        return "–"
    bounds = "" if score.low is None or score.high is None else f" [{number(score.low)}, {number(score.high)}]"
    return number(score.value) + bounds


def plain(value: float) -> str:
    return f"{value:.10g}"


def table(made: Generation) -> tuple[tuple[str, ...], ...]:
    """Every score of every cell; the first row is the head."""
    names = _names(made.scores)
    rows = [("row", "sampler", "steps", "coefficients", *names)]
    for cell in made.cells:
        weights = " + ".join(f"{plain(weight)}*{name}" for name, weight in cell.coefficients)
        found = (made.score(cell, name) for name in names)
        scores = ("–" if score is None else interval(score) for score in found)
        rows.append((cell.row, cell.sampler, str(cell.steps), weights or "–", *scores))
    return tuple(rows)


def _names(scores: Sequence[Score]) -> list[str]:
    """Names of scores that some cell has, in the order of `SCORES`."""
    had = {score.name for score in scores if score.value is not None}
    return [name for name in SCORES if name in had]


def _plots(
    made: Generation, title: str, x: str, lines: Mapping[str, Sequence[Cell]], at: Callable[[Cell], float]
) -> Plots:
    """One plot for each score that has values at two places or more."""
    drawn = []
    for name in _names(made.scores):
        series = [Line(label, _points(made, name, cells, at)) for label, cells in lines.items()]
        if len({point.x for line in series for point in line.points}) > 1:
            kind = SCORES[name]
            svg = plot(series, x=x, y=f"{name}, {kind.unit}" if kind.unit else name, logarithmic=x == "steps")
            heading = f"{name}, {kind.better} is better" if kind.better else name
            drawn.append(Drawn(heading, Markup(svg), f"{kind.title}."))
    return Plots(title, tuple(lines), tuple(drawn))


def _points(made: Generation, name: str, cells: Sequence[Cell], at: Callable[[Cell], float]) -> tuple[Point, ...]:
    points = []
    for cell in cells:
        score = made.score(cell, name)
        if score is not None and score.value is not None:
            label = f"{cell.row}, {cell.sampler}, {cell.steps} steps: {name} {interval(score)}"
            points.append(Point(at(cell), score.value, score.low, score.high, label))
    return tuple(points)
