"""What is there more than once, by the strongest sense in which two copies are the same."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from lorahub.workspace.core import Workspace
from lorahub.workspace.errors import translated

_HASHES = {"file": "file_sha256", "data": "data_sha256", "fingerprint": "fingerprint"}


@dataclass(frozen=True)
class Copy:
    """A version, and where its file lies; None: in the store."""

    reference: str
    place: str | None


@dataclass(frozen=True)
class Group:
    """Copies that are the same `by` file, data, fingerprint, or place (one version that lies at several)."""

    by: str
    same: str
    copies: tuple[Copy, ...]


def unread(workspace: Workspace) -> int:
    """How many live versions have no fingerprint, so that their copies in other spellings are not known."""
    with translated():
        return sum(record.fingerprint is None for record in workspace.registry.find())


def duplicates(workspace: Workspace, by: str | None = None) -> tuple[Group, ...]:
    """Groups of at least two copies. Without `by`, each set of versions is told once, by the strongest sense."""
    groups: list[Group] = []
    told: set[frozenset[str]] = set()
    with translated():
        places: dict[str | None, list[str]] = defaultdict(list)
        for place in workspace.registry.locations(missing=False):
            places[place.reference].append(str(Path(place.root) / place.relpath))
        for kind, field in _HASHES.items():
            if by not in (None, kind):
                continue
            for records in workspace.registry.duplicates(field):
                members = frozenset(record.reference for record in records)
                if members not in told:
                    told.add(members)
                    copies = [
                        Copy(record.reference, path)
                        for record in records
                        for path in [*places[record.reference], *([None] if record.stored else [])]
                    ]
                    groups.append(Group(kind, getattr(records[0], field), tuple(copies)))
    if by in (None, "place"):
        for reference, paths in places.items():
            if reference is not None and len(paths) > 1:
                groups.append(Group("place", reference, tuple(Copy(reference, path) for path in paths)))
    return tuple(groups)
