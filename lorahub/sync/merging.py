"""What both sides said of an adapter, merged field by field.

The rule: a field that one side changed since both were last alike takes that side's value; a field that both changed,
and differently, is a conflict, which only a person decides. Tags are merged one by one and never conflict.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from lorahub.errors import VerificationError
from lorahub.sync.document import Json, Said
from lorahub.workspace.core import Workspace
from lorahub.workspace.errors import translated
from lorahub.workspace.plain import from_plain
from registry import VersionRecord
from registry.errors import InvalidError

OURS, THEIRS = "ours", "theirs"


@dataclass(frozen=True)
class Merged:
    """The result, and the names of the fields on which the sides contradict each other (their value then is ours)."""

    said: Said
    conflicts: tuple[str, ...]


def merge(base: Said | None, mine: Said, theirs: Said, *, prefer: str | None = None) -> Merged:
    """Three-way; without a base, everything that differs is contradictory. prefer: `ours` or `theirs` decides."""
    values: dict[str, Any] = {"tags": _tags(base, mine, theirs)}
    conflicts = []
    for name in (field.name for field in fields(Said) if field.name != "tags"):
        before, ours, other = (getattr(side, name) if side is not None else _NOTHING for side in (base, mine, theirs))
        if ours == other or other == before:
            values[name] = ours
        elif ours == before or prefer == THEIRS:
            values[name] = other
        else:
            values[name] = ours
            if prefer is None:
                conflicts.append(name)
    return Merged(Said(**values), tuple(conflicts))


def read_said(plain: Json | None) -> Said | None:
    """What was last synced, as it was kept; None where nothing was, or an older lorahub kept it otherwise."""
    try:
        return None if plain is None else from_plain(Said, plain)
    except (VerificationError, InvalidError):
        return None


def apply(workspace: Workspace, record: VersionRecord, wanted: Said) -> VersionRecord:
    """Say of a version what is wanted, as far as it is not so already. What the file itself says cannot be unsaid."""
    now = {name: getattr(record, name) for name in ("base", "kind", "licence", "trigger_words", "run")}
    change = {name: getattr(wanted, name) for name, value in now.items() if getattr(wanted, name) != value}
    reset = [name for name, value in change.items() if value is None and name in record.overrides]
    said = {name: value for name, value in change.items() if value is not None}
    with translated(), workspace.transaction():
        registry = workspace.registry
        if said or reset:
            record = registry.edit(record.reference, reset=reset, **said)
        if set(record.tags) - set(wanted.tags):
            record = registry.untag(record.reference, *(set(record.tags) - set(wanted.tags)))
        if set(wanted.tags) - set(record.tags):
            record = registry.tag(record.reference, *(set(wanted.tags) - set(record.tags)))
    return record


def _tags(base: Said | None, mine: Said, theirs: Said) -> tuple[str, ...]:
    before, ours, other = (set(side.tags) if side is not None else set() for side in (base, mine, theirs))
    return tuple(sorted((ours & other) | (ours - before) | (other - before)))


_NOTHING = object()
