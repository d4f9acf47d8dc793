"""From scores to findings: are the pictures at few steps as good as those at many, is the style kept, are colours right?

The rule: a limit is measured on the same pictures or stated here, a finding is a pass or a failure only when the whole
95 % interval is on one side of it; anything else is inconclusive, and says that more seeds or prompts decide it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lorahub.validate.cells import COMBINATION, STYLE, Cell, Generation
from lorahub.validate.finding import Finding, Severity
from lorahub.validate.measures import Numbers
from lorahub.validate.scores import interval

FRESH_NOISE = 1.25
"""An accelerated sampler adds noise of its own on the way, so its pictures may differ from the many-step ones as two
seeds of those differ, and a quarter more."""
SAME_NOISE = 0.5
"""A solver of the base goes where the many steps go, so with half a seed's difference left it has not arrived."""
STYLE_KEPT = 0.5
"""Nearer to the style's pictures than to the base's."""
_ABSURD = 3.0
"""A share of the way beyond this is a quotient of noise by noise."""
OVER_SATURATED = 1.25
OVER_SHARP, BLURRED = 2.0, 0.5
"""Ratios to the many-step pictures beyond which a warning is given."""
_MORE = "more seeds or prompts would decide it"


def judge(generation: Generation) -> tuple[Finding, ...]:
    """What the pictures say, as findings named pictures.*; pure arithmetic on the scores."""
    cell = verdict_cell(generation)
    return (*_finite(generation), _distance(generation, cell), *_style(generation, cell), *_looks(generation, cell))


def verdict_cell(generation: Generation) -> Cell:
    """The cell that is judged: the expression as written, at the accelerator's usual steps, else at most steps."""
    plan = generation.plan
    fast = plan.acceleration
    steps = fast.steps if fast is not None and fast.steps in plan.steps else max(plan.steps)
    sampler = generation.reference.sampler if fast is None else fast.scheduler
    return next(
        cell for cell in generation.cells if (cell.row, cell.steps, cell.sampler) == (COMBINATION, steps, sampler)
    )


def _finite(generation: Generation) -> Iterator[Finding]:
    broken = [picture for picture in generation.pictures if not picture.finite]
    if broken:
        first = broken[0].cell
        yield Finding(
            "pictures.finite",
            Severity.FAIL,
            f"{len(broken)} of {len(generation.pictures)} pictures are not finite, the first of them in {_title(first)}",
            value=len(broken),
            limit=0,
        )


def _distance(generation: Generation, cell: Cell) -> Finding:
    """Within what the reference varies by itself, or nearer than the best of the unaccelerated samplers?"""
    name, own = _deciding(generation, cell)
    variation = _values(generation, generation.reference, "variation")
    if own is None or variation is None:
        return Finding(
            "pictures.distance", Severity.INCONCLUSIVE, "cannot be judged: it takes pictures of at least two seeds"
        )
    fast = generation.plan.acceleration is not None
    share = FRESH_NOISE if fast else SAME_NOISE
    limit = share * float(variation.mean())
    low, high = interval(own - share * variation)
    severity = Severity.PASS if high <= 0 else Severity.FAIL if low > 0 else Severity.INCONCLUSIVE
    said = f"{_title(cell)} differs in {name} from {_title(generation.reference)} by {own.mean():.3g}"
    said += f", the limit is {limit:.3g} ({share:g} of the difference between seeds)"
    plain = _best_plain(generation, cell, name) if fast else None
    if plain is not None:
        other = _values(generation, plain, name)
        assert other is not None
        better, worse = interval(own - other)[1] < 0, interval(own - other)[0] > 0
        said += f"; without acceleration, {_title(plain)}: {other.mean():.3g}"
        if better:
            severity = Severity.PASS
        elif severity is Severity.FAIL and not worse:
            severity = Severity.INCONCLUSIVE
    if severity is Severity.INCONCLUSIVE:
        said += f"; {_MORE}"
    return Finding("pictures.distance", severity, said, value=float(own.mean()), limit=limit)


def _best_plain(generation: Generation, cell: Cell, name: str) -> Cell | None:
    """The unaccelerated cell with as many steps whose pictures are nearest to the reference."""
    weights = generation.reference.coefficients
    rivals = [
        (float(values.mean()), place, other)
        for place, other in enumerate(generation.cells)
        if other.steps == cell.steps and other.coefficients == weights and other.row != COMBINATION
        if (values := _values(generation, other, name)) is not None
    ]
    return min(rivals)[2] if rivals else None


def _style(generation: Generation, cell: Cell) -> Iterator[Finding]:
    kept = _values(generation, cell, "style")
    if kept is None or generation.plan.acceleration is None:
        return
    low, high = interval(kept)
    value = float(kept.mean())
    if abs(value) > _ABSURD:
        said = (
            "the style's pictures are too near to the base's to say how much of the style is kept: draw more pictures"
        )
        yield Finding("pictures.style", Severity.INCONCLUSIVE, said, value=value, limit=STYLE_KEPT)
        return
    severity = Severity.PASS if low >= STYLE_KEPT else Severity.WARNING if high < STYLE_KEPT else Severity.INCONCLUSIVE
    said = f"{_title(cell)}: {value:.0%} of the way from the base's pictures to the style's"
    if severity is Severity.WARNING:
        said += ": the acceleration takes the style away, raise the style's coefficient or lower the accelerator's"
    elif severity is Severity.INCONCLUSIVE:
        said += f"; {_MORE}"
    yield Finding("pictures.style", severity, said, value=value, limit=STYLE_KEPT)


def _looks(generation: Generation, cell: Cell) -> Iterator[Finding]:
    """Over-strong coefficients show first in saturation and sharpness."""
    for name, least, most, what in (
        ("saturation", 0.0, OVER_SATURATED, "over-saturated: lower the coefficients"),
        ("sharpness", BLURRED, OVER_SHARP, "sharpened or blurred: change the steps or the coefficients"),
    ):
        own, reference = _values(generation, cell, name), _values(generation, generation.reference, name)
        if own is None or reference is None or not reference.mean() > 0:
            continue
        low, high = interval(np.stack([own, reference], 1), lambda drawn: _ratio(drawn))
        ratio = float(own.mean() / reference.mean())
        bad = low > most or high < least
        said = f"{_title(cell)}: {name} is {ratio:.2f} times that of {_title(generation.reference)}"
        yield Finding(
            f"pictures.{name}",
            Severity.WARNING if bad else Severity.PASS,
            f"{said}: {what}" if bad else said,
            value=ratio,
            limit=least if ratio < least else most,
        )


def _ratio(drawn: Numbers) -> Numbers:
    means = drawn.mean(1)
    return np.asarray(means[:, 0] / np.maximum(means[:, 1], 1e-12))


def _deciding(generation: Generation, cell: Cell) -> tuple[str, Numbers | None]:
    """Learned features where there are any, else texture."""
    learned = _values(generation, cell, "features")
    return ("features", learned) if learned is not None else ("texture", _values(generation, cell, "texture"))


def _values(generation: Generation, cell: Cell, name: str) -> Numbers | None:
    score = generation.score(cell, name)
    return None if score is None or score.value is None else np.array(score.values)


def _title(cell: Cell) -> str:
    row = "style alone" if cell.row == STYLE else cell.row
    return f"{row} at {cell.steps} step{'s' * (cell.steps > 1)} of {cell.sampler}"
