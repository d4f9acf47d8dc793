"""Frozen records to what JSON can hold, and back.

The way back trusts nothing: every value is checked against the type its dataclass declares, and what is missing, unknown
or of another type is refused with the place where it stood.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from lorahub.errors import VerificationError

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """The value with records as dicts, tuples as lists, times in ISO 8601 and paths as text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(inner) for inner in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, Path) else value


def from_plain(kind: type[T], value: Any, where: str = "") -> T:
    """The dataclass `kind` that `value` states; raises VerificationError, naming `where`, for anything else."""
    record: T = _read(kind, value, where or kind.__name__)
    return record


def _read(kind: Any, value: Any, where: str) -> Any:
    origin, inside = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else _read(next(part for part in inside if part is not type(None)), value, where)
    if origin is tuple:
        return tuple(_read(inside[0], item, f"{where}[{i}]") for i, item in enumerate(_is(list, value, where)))
    if origin is not None:
        return {key: _read(inside[1], item, f"{where}.{key}") for key, item in _is(dict, value, where).items()}
    if is_dataclass(kind):
        return _read_record(kind, value, where)
    if kind is datetime:
        try:
            return datetime.fromisoformat(_is(str, value, where))
        except ValueError:
            raise _unexpected("a time in ISO 8601", value, where) from None
    if kind is float and type(value) is int:
        return float(value)
    return _is(kind, value, where)


def _read_record(kind: Any, value: Any, where: str) -> Any:
    hints = _hints(kind)
    given = _is(dict, value, where)
    unknown = given.keys() - hints.keys()
    if unknown:
        raise VerificationError(f"{where} has an unknown field {min(unknown)!a}; expected {', '.join(hints)}")
    for field in fields(kind):
        if field.name not in given and field.default is MISSING and field.default_factory is MISSING:
            raise VerificationError(f"{where} lacks {field.name!r}")
    return kind(**{name: _read(hints[name], item, f"{where}.{name}") for name, item in given.items()})


def _is(kind: type, value: Any, where: str) -> Any:
    if type(value) is not kind:  # not isinstance: True is no number here
        raise _unexpected(kind.__name__, value, where)
    return value


def _unexpected(expected: str, value: Any, where: str) -> VerificationError:
    return VerificationError(f"{where}: expected {expected}, got {repr(value)[:80]}")


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
