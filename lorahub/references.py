"""What names an adapter: a path, a registry name, a Hub repository. All of lorahub resolves names here, and only here.

A path that exists wins. Else a text without a slash is asked of the registry, `user/repo` of the Hub: names in the
registry hold no slash, Hub ids always do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorahub.errors import NotFoundError, UsageError
from lorahub.hub.reference import reads_as_hub

if TYPE_CHECKING:
    from lorahub.workspace.core import Workspace
    from registry import VersionRecord


@dataclass(frozen=True)
class Located:
    """Where an adapter lies, and if its name was one of the registry, which version it is."""

    path: Path
    record: VersionRecord | None = None


def locate(reference: str | Path) -> Path:
    """The path of the adapter that the reference names; Hub repositories are downloaded. Raises what `find` raises."""
    return find(reference).path


def find(reference: str | Path, workspace: Workspace | None = None) -> Located:
    """The adapter that the reference names; the registry that is asked is `workspace`, or else the configured one.

    Raises UsageError for an empty name, NotFoundError that says what was tried, what `lorahub.hub.fetch` raises, and
    what opening the registry raises. No registry is made.
    """
    if not str(reference):
        raise UsageError("an empty name is no adapter: expected a file, a folder, a registry name or user/repo")
    path = existing(reference)
    if path is not None:
        return Located(path)
    if isinstance(reference, str) and reads_as_hub(reference):
        from lorahub.hub.fetch import fetch  # the client takes half a second to import

        return Located(fetch(reference, what=f"no file {reference!r} here; as a Hub repository"))
    tried = f"no adapter {str(reference)!r}: there is no such file, and it is no Hub repository (user/repo)"
    if isinstance(reference, str) and reads_as_registry(reference):
        known = _in_registry(reference, workspace)
        if isinstance(known, Located):
            return known
        tried += known
    raise NotFoundError(tried)


def reads_as_registry(text: str) -> bool:
    """Whether the text reads as `NAME[:VERSION|@ALIAS]` or `sha256:prefix`."""
    from registry.errors import InvalidError
    from registry.references import parse_reference

    try:
        parse_reference(text)
    except InvalidError:
        return False
    return True


def existing(reference: str | Path) -> Path | None:
    """The path that the reference is, if something lies there."""
    path = Path(reference)
    with contextlib.suppress(RuntimeError):  # `~name` of nobody on this machine is a name like any other
        path = path.expanduser()
    try:
        return path if path.exists() else None
    except (OSError, ValueError):  # too long, or a NUL: no file is called so
        return None


@contextlib.contextmanager
def configured() -> Iterator[Workspace | None]:
    """The registry that is configured, None if there is none: looking a name up makes no registry."""
    from lorahub.workspace.settings import settings
    from registry.home import exists  # costs nothing; the registry itself imports SQLAlchemy

    used = settings()
    if used.database_url is None and not exists(used.home):
        yield None
        return
    from lorahub.workspace.core import Workspace

    with Workspace.open() as workspace:
        yield workspace


def _in_registry(reference: str, workspace: Workspace | None) -> Located | str:
    """What the registry has under this name, or in words why it has nothing; none if there is no registry."""
    with contextlib.ExitStack() as stack:
        if workspace is None:
            workspace = stack.enter_context(configured())
        if workspace is None:
            return ""
        try:
            record = workspace.get(reference)
        except NotFoundError as error:
            return f"; in the registry, {error}"
        return Located(workspace.path(record), record)
