"""All or nothing: several verbs as one transaction, which a dry run undoes at its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorahub.workspace.core import Workspace


class _UndoneError(Exception):
    """Leaves a transaction without committing it."""


@contextmanager
def attempt(workspace: Workspace, *, dry_run: bool = False) -> Iterator[None]:
    """One transaction of all that happens inside; a dry run does the same work, errors included, and keeps nothing."""
    try:
        with workspace.transaction():
            yield
            if dry_run:
                raise _UndoneError
    except _UndoneError:
        pass
