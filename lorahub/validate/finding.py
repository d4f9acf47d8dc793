"""One thing a check found, and how bad it is. The rule: what could not be judged is INCONCLUSIVE, which is not a pass."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Severity(StrEnum):
    """From best to worst: an adapter that fails a check is worse than one that could not be judged."""

    PASS = "pass"
    WARNING = "warning"
    INCONCLUSIVE = "inconclusive"
    FAIL = "fail"

    @property
    def badness(self) -> int:
        """0 for PASS up to 3 for FAIL."""
        return list(Severity).index(self)


@dataclass(frozen=True)
class Finding:
    """What a check says. check: its name in the table. layer: what it is about, None for the whole.

    value and limit: the number that was judged and the bound it was held to, in the unit the message names.
    of: the operand whose file it is about, as the expression names it; None for the combination, or a single adapter.
    """

    check: str
    severity: Severity
    message: str
    layer: str | None = None
    value: float | None = None
    limit: float | None = None
    of: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields by name; null stands for a value that is no finite number."""
        return {
            "check": self.check,
            "severity": self.severity.value,
            "message": self.message,
            "layer": self.layer,
            "value": _finite(self.value),
            "limit": _finite(self.limit),
            "of": self.of,
        }


def worst(findings: Iterable[Finding]) -> Severity:
    """The worst severity among them; INCONCLUSIVE when there are none, since then nothing was judged."""
    return max((finding.severity for finding in findings), key=lambda each: each.badness, default=Severity.INCONCLUSIVE)


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def passed(message: str, **where: Any) -> Finding:
    """A PASS; like the three below, for a check that is run from the table, which puts its name on what it finds."""
    return Finding("", Severity.PASS, message, **where)


def warned(message: str, **where: Any) -> Finding:
    return Finding("", Severity.WARNING, message, **where)


def unsure(message: str, **where: Any) -> Finding:
    return Finding("", Severity.INCONCLUSIVE, message, **where)


def failed(message: str, **where: Any) -> Finding:
    return Finding("", Severity.FAIL, message, **where)
