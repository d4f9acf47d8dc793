"""From an expression and a plan to the cells of the figure, in the order they are drawn.

The rule: the many-step references come first, since every other cell is compared with them; cells with the same
coefficients lie together, so that an adapter is put on once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorahub.errors import UsageError
from lorahub.validate.cells import BASE, COMBINATION, STYLE, Cell, Plan, Sweep

_SWEEP = re.compile(r"(?P<term>.+)=(?P<start>[^:=]+):(?P<stop>[^:]+):(?P<step>[^:]+)")
_LIST = re.compile(r"(?P<term>.+)=(?P<values>[^:=]+)")
MAX_SWEEP = 100


@dataclass(frozen=True)
class Figure:
    """cells: in drawing order. reference, base_reference: those drawn with many steps, with the style and without."""

    cells: tuple[Cell, ...]
    reference: Cell
    base_reference: Cell


def parse_sweep(text: str, terms: Sequence[str]) -> Sweep:
    """`lcm=0.6:1.2:0.2` (from, to and including, by) or `lcm=0.6,0.8,1`: values of one term's coefficient.

    terms: the operands of the expression. Raises UsageError that says which part is wrong.
    """
    ranged = _SWEEP.fullmatch(text)
    listed = None if ranged else _LIST.fullmatch(text)
    found = ranged or listed
    if found is None:
        raise UsageError(f"cannot read the sweep {text!r}: expected TERM=FROM:TO:BY, such as lcm=0.6:1.2:0.2")
    term = found["term"].strip()
    if term not in terms:
        raise UsageError(f"sweep {text!r}: no term {term!r} in the expression: it has {', '.join(terms)}")
    if listed is not None:
        values = tuple(_number(part, text) for part in listed["values"].split(","))
    else:
        start, stop, step = (_number(found[part], text) for part in ("start", "stop", "step"))
        values = _range(start, stop, step, text)
    return Sweep(term, tuple(dict.fromkeys(values)))


def _range(start: float, stop: float, step: float, text: str) -> tuple[float, ...]:
    if step <= 0 or stop < start:
        raise UsageError(f"sweep {text!r}: expected FROM not above TO and BY above 0")
    count = math.floor((stop - start) / step + 1e-9) + 1
    if count > MAX_SWEEP:
        raise UsageError(f"sweep {text!r} has {count} values: at most {MAX_SWEEP}, choose a larger BY")
    return tuple(round(start + index * step, 10) for index in range(count))


def _number(text: str, whole: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UsageError(f"sweep {whole!r}: {text.strip()!r} is no number") from None
    if not math.isfinite(value):
        raise UsageError(f"sweep {whole!r}: {text.strip()} is no coefficient")
    return value


def figure(plan: Plan, coefficients: Mapping[str, float], accelerators: Sequence[str], guidance: float) -> Figure:
    """The cells of a plan whose samplers are filled in.

    coefficients: operand -> weight in the expression. accelerators: which operands accelerate. guidance: of the base's
    samplers. The style row is left out where no term accelerates, for then it is the combination, and where all do.
    """
    whole = tuple(coefficients.items())
    style = tuple((name, weight) for name, weight in whole if name not in accelerators)
    if plan.sweep is not None and plan.sweep.term not in coefficients:
        raise UsageError(f"no term {plan.sweep.term!r} to sweep in the expression: it has {', '.join(coefficients)}")

    def own(row: str, weights: tuple[tuple[str, float], ...]) -> list[Cell]:
        return [Cell(row, name, n, guidance, weights) for name in plan.samplers for n in plan.steps]

    def many(row: str, weights: tuple[tuple[str, float], ...]) -> Cell:
        return Cell(row, plan.samplers[0], plan.reference_steps, guidance, weights)

    base_reference = many(BASE, ())
    cells = [base_reference, *own(BASE, ())]
    reference = base_reference
    if style:
        row = COMBINATION if plan.acceleration is None else STYLE
        reference = many(row, style)
        cells += [reference, *own(row, style)]
    if plan.acceleration is not None:
        fast = plan.acceleration
        cells += [Cell(COMBINATION, fast.scheduler, n, fast.guidance, whole) for n in plan.steps]
    if plan.sweep is not None:
        cells += _swept(plan, plan.sweep, coefficients, guidance)
    return Figure(tuple(dict.fromkeys(cells)), reference, base_reference)


def _swept(plan: Plan, sweep: Sweep, coefficients: Mapping[str, float], guidance: float) -> list[Cell]:
    fast = plan.acceleration
    sampler, scale = (plan.samplers[0], guidance) if fast is None else (fast.scheduler, fast.guidance)
    return [
        Cell(COMBINATION, sampler, n, scale, tuple((dict(coefficients) | {sweep.term: value}).items()))
        for value in sweep.values
        for n in plan.steps
    ]
