"""`lorahub.open()`: a workspace whose verbs are methods.

Each verb is the function of its own file, taken into the class as it is: same signature, same documentation.
"""

from __future__ import annotations

from pathlib import Path

from lorahub.workspace import (
    adding,
    archive,
    backups,
    checking,
    compatibility,
    duplicates,
    editing,
    lineage,
    listing,
    mending,
    removing,
    scanning,
    showing,
)
from lorahub.workspace.core import Workspace


class Catalogue(Workspace):
    """An open registry with its files, and everything that can be done with them; a context manager."""

    add = adding.add
    scan = scanning.scan
    list = listing.list_adapters
    search = listing.search
    show = showing.show
    edit = editing.edit
    tag = editing.tag
    untag = editing.untag
    alias = editing.alias
    unalias = editing.unalias
    alias_history = editing.alias_history
    rename = editing.rename
    remove = removing.remove
    restore = removing.restore
    trash = removing.trash
    export = archive.export
    import_ = archive.import_
    backup = backups.backup
    lineage = lineage.family
    compatible = compatibility.compatible
    duplicates = duplicates.duplicates
    verify = checking.verify
    repair = mending.repair


def open(home: Path | str | None = None, *, database_url: str | None = None, store: str | None = None) -> Catalogue:
    """The registry of `home` (else as configured), made and upgraded on first use; use it in a `with` block.

    Raises ConflictError for a locked or newer database, VerificationError for a damaged one, NotFoundError when it
    cannot be made.
    """
    return Catalogue.open(home, database_url=database_url, store=store)
