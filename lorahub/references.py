"""What names an adapter: a path, a registry name, a Hub repository. All of lorahub resolves names here, and only here."""

from __future__ import annotations

from pathlib import Path

from lorahub.errors import NotFoundError


def locate(reference: str | Path) -> Path:
    """The path of the adapter that the reference names; Hub repositories are downloaded.

    Raises NotFoundError listing what was tried, and what `lorahub.hub.fetch` raises.
    """
    path = Path(reference).expanduser()
    if path.exists():
        return path
    if isinstance(reference, str):
        from lorahub.hub.fetch import fetch, is_hub_reference  # the client takes half a second to import

        if is_hub_reference(reference):
            return fetch(reference, what=f"no file {reference!r} here; as a Hub repository")
    raise NotFoundError(
        f"no adapter {str(reference)!r}: there is no such file, and it is no Hub repository (user/repo)"
    )
