"""From what a verb is given, one reference or several, to the versions it means."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorahub.workspace.core import Workspace
    from registry.records import VersionRecord


def as_references(given: str | Iterable[str]) -> tuple[str, ...]:
    """One reference or several, as several."""
    return (given,) if isinstance(given, str) else tuple(given)


def meant(workspace: Workspace, reference: str) -> tuple[VersionRecord, ...]:
    """The live versions a reference means where a bare name means all its versions; raises NotFoundError for none."""
    from registry import parse_reference

    parsed = parse_reference(reference)
    newest = workspace.registry.get(reference)
    if parsed.name is None or parsed.number is not None or parsed.alias is not None:
        return (newest,)
    return tuple(record for record in workspace.registry.versions(newest.name) if record.deleted_at is None)
