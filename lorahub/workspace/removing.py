"""Out of the catalogue and back: the trash. Nothing here deletes a file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lorahub.errors import ConflictError
from lorahub.workspace.attempt import attempt
from lorahub.workspace.errors import translated
from lorahub.workspace.naming import as_references, meant

if TYPE_CHECKING:
    from lorahub.workspace.core import Workspace
    from registry.records import VersionRecord


def remove(
    workspace: Workspace, references: str | Iterable[str], *, dry_run: bool = False
) -> tuple[VersionRecord, ...]:
    """Move versions to the trash, with a bare name all versions of it; all or none.

    Raises ConflictError while an alias points at one of them.
    """
    registry = workspace.registry
    with attempt(workspace, dry_run=dry_run):
        gone: list[VersionRecord] = []
        for reference in as_references(references):
            for record in meant(workspace, reference):
                if record.aliases:
                    alias = record.aliases[0]
                    raise ConflictError(
                        f"{record.reference} is {record.name}@{alias}: "
                        f"run `lorahub alias {record.name} {alias} --delete` first"
                    )
            gone.extend(registry.remove(reference))
        return tuple(gone)


def restore(
    workspace: Workspace, references: str | Iterable[str], *, dry_run: bool = False
) -> tuple[VersionRecord, ...]:
    """Bring versions back from the trash, with a bare name all versions of it; all or none."""
    with attempt(workspace, dry_run=dry_run):
        return tuple(
            record for reference in as_references(references) for record in workspace.registry.restore(reference)
        )


@translated()
def trash(workspace: Workspace) -> tuple[VersionRecord, ...]:
    """What is in the trash."""
    return workspace.registry.trash()
