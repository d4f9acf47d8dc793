"""Settings whose every value is checked when they are made: the base of all that a run's TOML file holds.

The rule: a setting states its bounds or choices beside its default, and an error names the key. Needs no torch.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from lorahub.errors import UsageError

_WORDS = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}
_TYPES: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool}


def within(low: float, high: float, text: str) -> dict[str, Any]:
    """The bounds of a number, and what it is."""
    return {"low": low, "high": high, "text": text}


def among(choices: tuple[str, ...], text: str) -> dict[str, Any]:
    """The choices of a word, and what it is; "" among them stands for none."""
    return {"choices": choices, "text": text}


def setting(default: Any, checks: dict[str, Any] | str) -> Any:
    """A field of `Checked`: its default, and its checks or just what it is."""
    return field(default=default, metadata={"text": checks} if isinstance(checks, str) else checks)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A frozen value whose fields are int, float, str, bool, or tuples of them. Raises UsageError naming the wrong key."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            object.__setattr__(self, entry.name, _checked(entry, getattr(self, entry.name)))

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Self:
        """The settings that a table holds. Raises UsageError for a key that is none, with the nearest one that is."""
        refuse_unknown(table, [entry.name for entry in fields(cls)])
        return cls(**table)


def refuse_unknown(table: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raises UsageError for a key that is not known, with the nearest one that is."""
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            raise UsageError(f"{key}: no such setting; {hint}")


def _checked(entry: dataclasses.Field[Any], value: Any) -> Any:
    """The value in the type of its setting."""
    kind = str(entry.type)
    if not kind.startswith("tuple"):
        return _single(entry, kind, value)
    if not isinstance(value, (list, tuple)):
        raise UsageError(f"{entry.name}: expected a list, got {value!r}")
    return tuple(_single(entry, "int" if "int" in kind else "str", part) for part in value)


def _single(entry: dataclasses.Field[Any], kind: str, value: Any) -> Any:
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, _TYPES[kind]) or (kind != "bool" and isinstance(value, bool)):
        raise UsageError(f"{entry.name}: expected {_WORDS[kind]}, got {value!r}")
    choices, low, high = (entry.metadata.get(check) for check in ("choices", "low", "high"))
    if choices and value not in choices:
        raise UsageError(f"{entry.name}: expected one of {', '.join(filter(None, choices))}, got {value!r}")
    if low is not None and high is not None and not low <= value <= high:  # bounds are finite, and NaN is in none
        raise UsageError(f"{entry.name}: expected {_WORDS[kind]} from {low:g} to {high:g}, got {value!r}")
    return value
