"""The listed base models, read from the tables in `data/`.

The rule: a base is read when it is first asked for, and no other with it; every later call returns the same value.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lorahub.bases.model import Base, Component, Span
from lorahub.bases.tables import unfold, unfold_aliases
from lorahub.errors import ConflictError, NotFoundError

_DATA = Path(__file__).parent / "data"
_registered: dict[str, Base] = {}


def names() -> tuple[str, ...]:
    """The names of all listed bases, in the order they are listed to people."""
    return tuple(_also_known_as())


def register(base: Base) -> None:
    """Make `get` know a base that is not listed, for this process; `detect` never proposes it.

    Raises:
        ConflictError: the name belongs to a listed base, or to another registered one.
    """
    if canonical_name(base.name) is not None or _registered.setdefault(base.name, base) != base:
        raise ConflictError(f"a base called {base.name!r} is known already: choose another name")


def get(name: str) -> Base:
    """The base of that name, hub id or usual other spelling (`sdxl-1.0`, `SD 1.5`, `flux.1-dev`).

    Raises:
        NotFoundError: no listed or registered base is called so.
    """
    if name in _registered:
        return _registered[name]
    found = canonical_name(name)
    if found is None:
        close = difflib.get_close_matches(_plain(name), _canonical_names(), n=1)
        hint = f"did you mean {_canonical_names()[close[0]]}? " if close else ""
        raise NotFoundError(f"no base model is called {name!r}: {hint}known bases are {', '.join(names())}")
    return _read(found)


def canonical_name(name: str) -> str | None:
    """The name of the listed base that `name` is a spelling of, or None."""
    return _canonical_names().get(_plain(name))


@cache
def table(name: str) -> Mapping[str, Any]:
    """The table of a listed base as it lies on disk: repeated blocks are written once (see `tables`)."""
    content: dict[str, Any] = json.loads((_DATA / f"{name}.json").read_text(encoding="utf-8"))
    return content


@cache
def _read(name: str) -> Base:
    content = table(name)
    return Base(
        name=content["name"],
        title=content["title"],
        hub_ids=tuple(content["hub_ids"]),
        declared_as=tuple(content["declared_as"]),
        components={part: _component(part, held) for part, held in content["components"].items()},
    )


def _component(name: str, part: Mapping[str, Any]) -> Component:
    layers: dict[str, tuple[int, ...]] = {module: tuple(shape) for module, shape in unfold(part["layers"])}
    norms: dict[str, int] = dict(unfold(part["norms"]))
    embeddings: dict[str, tuple[int, ...]] = {module: tuple(shape) for module, shape in unfold(part["embeddings"])}
    rows = {module: shape[0] for module, shape in (layers | embeddings).items()} | norms
    return Component(
        name=name,
        prefixes=tuple(part["prefixes"]),
        layers=layers,
        norms=norms,
        embeddings=embeddings,
        aliases={
            dialect: {alias: spans(meaning, rows) for alias, meaning in unfold_aliases(folded)}
            for dialect, folded in part["aliases"].items()
        },
        kohya_dialect=part["kohya_dialect"],
    )


def spans(meaning: str | list[list[Any]], rows: Mapping[str, int]) -> tuple[Span, ...]:
    """What an alias means, in the form of the tables, as spans; `rows` has the length of every module."""
    if isinstance(meaning, str):
        return (Span(meaning, 0, rows[meaning]),)
    return tuple(Span(layer, start, stop) for layer, start, stop in meaning)


@cache
def _also_known_as() -> dict[str, list[str]]:
    index: dict[str, list[str]] = json.loads((_DATA / "index.json").read_text(encoding="utf-8"))
    return index


@cache
def _canonical_names() -> dict[str, str]:
    """Plain spelling -> name of the base."""
    return {_plain(spelling): name for name, others in _also_known_as().items() for spelling in (name, *others)}


def _plain(name: str) -> str:
    """The form in which names are compared: case and the marks between words do not count."""
    return re.sub(r"[\s._-]+", "", name).lower()
