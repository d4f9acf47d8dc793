"""What people say of adapters: overrides, notes, tags, aliases, names. Overrides are sticky: no later scan undoes them.

Verbs that take several references are one transaction: if one fails, none is changed.
"""

from __future__ import annotations

import getpass
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lorahub.errors import UsageError
from lorahub.workspace.attempt import attempt
from lorahub.workspace.errors import translated
from lorahub.workspace.naming import as_references

if TYPE_CHECKING:
    from lorahub.workspace.core import Workspace
    from registry.records import AliasChange, RunSettings, VersionRecord


def edit(
    workspace: Workspace,
    references: str | Iterable[str],
    *,
    base: str | None = None,
    kind: str | None = None,
    licence: str | None = None,
    notes: str | None = None,
    trigger_words: Iterable[str] | None = None,
    run: Mapping[str, Any] | None = None,
    reset: Iterable[str] = (),
    dry_run: bool = False,
) -> tuple[VersionRecord, ...]:
    """Override what was found in versions; None leaves a field alone, `reset` forgets overrides.

    `run` changes single fields of the run settings (`{"steps": 4, "guidance_max": 2.0}`) and keeps the others.
    Raises UsageError for an unknown field or kind, or when nothing is to be changed.
    """
    words = None if trigger_words is None else list(trigger_words)
    reset = tuple(reset)
    if not reset and not run and all(value is None for value in (base, kind, licence, notes, words)):
        raise UsageError("nothing to change: name a field and its value, or a field to reset")
    with attempt(workspace, dry_run=dry_run):
        return tuple(
            workspace.registry.edit(
                record.reference,
                base=base,
                kind=kind,
                licence=licence,
                notes=notes,
                trigger_words=words,
                run=_changed(None if "run" in reset else record.run, run),
                reset=reset,
            )
            for record in map(workspace.registry.get, as_references(references))
        )


def tag(
    workspace: Workspace, references: str | Iterable[str], *tags: str, dry_run: bool = False
) -> tuple[VersionRecord, ...]:
    """Put tags on versions; raises UsageError for what cannot be a tag."""
    with attempt(workspace, dry_run=dry_run):
        return tuple(workspace.registry.tag(reference, *tags) for reference in as_references(references))


def untag(
    workspace: Workspace, references: str | Iterable[str], *tags: str, dry_run: bool = False
) -> tuple[VersionRecord, ...]:
    """Take tags off versions; those they do not have are no error."""
    with attempt(workspace, dry_run=dry_run):
        return tuple(workspace.registry.untag(reference, *tags) for reference in as_references(references))


def alias(workspace: Workspace, reference: str, name: str, *, dry_run: bool = False) -> VersionRecord:
    """Point the alias `name` of an adapter at a version, wherever it pointed before; its history remembers who did."""
    with attempt(workspace, dry_run=dry_run):
        return workspace.registry.alias(reference, name, by=_user())


def unalias(workspace: Workspace, adapter: str, name: str, *, dry_run: bool = False) -> None:
    """Remove an alias of an adapter; its history stays. Raises NotFoundError if there is none."""
    with attempt(workspace, dry_run=dry_run):
        workspace.registry.unalias(adapter, name, by=_user())


@translated()
def alias_history(workspace: Workspace, adapter: str, name: str | None = None) -> tuple[AliasChange, ...]:
    """Who pointed an adapter's alias, or each of them, where and when; the oldest move first."""
    return workspace.registry.alias_history(adapter, name)


def rename(workspace: Workspace, old: str, new: str, *, dry_run: bool = False) -> VersionRecord:
    """Give an adapter another name, with all its versions and aliases; raises ConflictError if the name is taken."""
    with attempt(workspace, dry_run=dry_run):
        workspace.registry.rename(old, new)
        return workspace.registry.get(new)


def _changed(run: RunSettings | None, changes: Mapping[str, Any] | None) -> RunSettings | None:
    from registry import RunSettings

    if not changes:
        return None
    try:
        return replace(run or RunSettings(), **changes)
    except TypeError:
        known = RunSettings.__dataclass_fields__
        unknown = sorted(changes.keys() - known.keys())
        raise UsageError(f"unknown run setting {', '.join(unknown)}; expected {', '.join(known)}") from None


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have a number and no name
        return None
