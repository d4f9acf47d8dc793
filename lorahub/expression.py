"""Combinations as people write them: `0.8*style + 1.0*lcm - 0.5*blur` becomes weighted references. No eval.

`+` and `-` are operators only with whitespace around them, so `sd2-popart` is one name; a name with spaces is quoted.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from lorahub.errors import UsageError

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_TERM = re.compile(rf"""\s*(?:(?P<weight>{_NUMBER})\s*\*\s*)?(?P<ref>"[^"]+"|'[^']+'|-?[^\s"'*+-][^\s"'*]*)""")
_OPERATOR = re.compile(r"\s+([+-])(?=\s)")


@dataclass(frozen=True)
class Term:
    """`weight` times the adapter that `reference` names."""

    weight: float
    reference: str


def parse(text: str) -> tuple[Term, ...]:
    """The terms of an expression, in order.

    Raises UsageError, pointing at the place, when the text is not `[w*]ref (+|-) [w*]ref ...`.
    """
    terms: list[Term] = []
    position, sign = 0, 1.0
    leading = re.match(r"\s*([+-])\s+", text)
    if leading:
        sign, position = float(f"{leading[1]}1"), leading.end()
    while True:
        match = _TERM.match(text, position)
        if not match:
            raise _error(text, position, "expected an adapter, such as style or 0.8*./style.safetensors")
        reference = match["ref"]
        if reference[0] in "\"'":
            reference = reference[1:-1]
        elif match["weight"] is None and reference.startswith("-"):  # -style: minus one times it
            sign, reference = -sign, reference[1:]
        weight = sign * float(match["weight"] or 1)
        if not math.isfinite(weight):
            raise _error(text, position, f"the weight {match['weight']} is too large")
        terms.append(Term(weight, reference))
        position = match.end()
        if not text[position:].strip():
            return tuple(terms)
        operator = _OPERATOR.match(text, position)
        if not operator:
            raise _error(text, position, "expected + or - with spaces around it")
        sign, position = float(f"{operator[1]}1"), operator.end()


def render(weights: list[tuple[float, str]]) -> str:
    """One line with every weight written out; with quoted names the inverse of parse."""
    parts: list[str] = []
    for weight, name in weights:
        sign = ("- " if weight < 0 else "+ ") if parts else ("-" if weight < 0 else "")
        parts.append(f"{sign}{_number(abs(weight))}*{name}")
    return " ".join(parts)


def _number(value: float) -> str:
    """The shortest text that reads back as the same float."""
    short = f"{value:.10g}"
    return short if float(short) == value else repr(value)


def quote(name: str) -> str:
    """The name as an expression must spell it (a name that holds both kinds of quotes has no spelling)."""
    if '"' in name:
        return f"'{name}'"
    return f'"{name}"' if re.search(r"[\s*']|^[-+]", name) else name


def _error(text: str, position: int, expected: str) -> UsageError:
    rest = text[position:].strip()
    place = f"at {rest[:30]!r}" if rest else "at its end"
    return UsageError(f"cannot read the expression {text!r} {place}: {expected}")
