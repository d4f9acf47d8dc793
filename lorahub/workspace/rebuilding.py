"""Make the database again: from its journal, and where that is lost too, from the files in the store."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from lorahub.errors import ConflictError, LorahubError, UsageError
from lorahub.workspace.core import Workspace
from lorahub.workspace.errors import translated
from lorahub.workspace.facts import full_facts
from lorahub.workspace.settings import settings
from lorahub.workspace.structure import describe
from registry import default_home, suggest_name


@dataclass(frozen=True)
class Rebuilt:
    """`complete`: the journal was whole, so names, tags and notes are back; else only what the stored files tell.

    `set_aside` is the old database. `recovered` are versions made from stored files, `without_file` versions whose blob
    is gone, `unreadable` (blob, reason) what could not be read.
    """

    database: str
    set_aside: str | None
    complete: bool
    adapters: int
    recovered: tuple[str, ...]
    without_file: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...]


def rebuild(home: Path | str | None = None, *, force: bool = False) -> Rebuilt:
    """Rebuild the database of a home; the old one is renamed, not deleted.

    Raises ConflictError for a database that is whole, unless `force`; UsageError for one on a server.
    """
    used = settings(home=home)
    if used.database_url is not None:
        raise UsageError("a database on a server is restored with the server's tools (pg_dump, pg_restore)")
    from registry.rebuilding import rebuild as rebuild_database

    place = (used.home or default_home()).expanduser().absolute()
    if not force and _is_whole(used.home):
        raise ConflictError(f"the database in {place} is whole: nothing to rebuild (--force does it all the same)")
    with translated():
        made = rebuild_database(place)
    with Workspace.open(used.home, store=used.store) as workspace:
        with translated():
            workspace.registry.rebuild_search()
        recovered, unreadable = ([], []) if made.complete else _recover(workspace)
        with translated():
            without = tuple(record.reference for record in workspace.registry.without_blob())
            count = len(workspace.registry.names())
    aside = str(made.set_aside) if made.set_aside else None
    return Rebuilt(str(made.database), aside, made.complete, count, tuple(recovered), without, tuple(unreadable))


def database_path() -> str:
    """Where the database is, or is to be; a server's URL without its password."""
    used = settings()
    if used.database_url is not None:
        return re.sub(r"(//[^/@:]*):[^/@]*@", r"\1:***@", used.database_url)
    return str((used.home or default_home()).expanduser().absolute() / "registry.db")


def _is_whole(home: Path | None) -> bool:
    try:
        with Workspace.open(home) as workspace:
            return not [line for line in workspace.registry.check() if " has no blob " not in line]
    except LorahubError:
        return False


def _recover(workspace: Workspace) -> tuple[list[str], list[tuple[str, str]]]:
    """A version for each stored file, called as the file says it is."""
    recovered: list[str] = []
    unreadable: list[tuple[str, str]] = []
    for blob in sorted(
        workspace.registry.blobs.blobs(), key=lambda one: (one.modified is None, one.modified, one.sha256)
    ):
        try:
            with translated():
                path = workspace.registry.blobs.path(blob.sha256)
            found = full_facts(path, weights=False)
            if found.facts.file_sha256 != blob.sha256:
                unreadable.append((blob.sha256, "its bytes have another hash"))
                continue
            metadata = describe(path).metadata
            said = metadata.get("ss_output_name") or metadata.get("modelspec.title")
            facts = replace(found.facts, source={}, previews=())
            with translated():
                name = suggest_name(said) if said else f"recovered-{blob.sha256[:12]}"
                recovered.append(workspace.registry.add_version(name, facts, stored=True).reference)
        except LorahubError as error:
            unreadable.append((blob.sha256, str(error)))
    return recovered, unreadable
