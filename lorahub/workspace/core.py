"""A workspace: an open registry, its blob store, and the settings in force."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from lorahub.errors import NotFoundError
from lorahub.workspace.errors import translated
from lorahub.workspace.settings import Settings, settings
from registry import Registry, VersionRecord


class Workspace:
    """An open registry with its files; a context manager. `registry` has the catalogue's own verbs."""

    def __init__(self, registry: Registry, used: Settings) -> None:
        self.registry = registry
        self.settings = used

    @classmethod
    def open(cls, home: Path | str | None = None, *, database_url: str | None = None, store: str | None = None) -> Self:
        """Open the registry of `home` (else as configured), made and upgraded on first use.

        Raises ConflictError for a locked or newer database, VerificationError for a damaged one, NotFoundError when it
        cannot be made.
        """
        used = settings(home=home, database_url=database_url, store=store)
        with translated():
            registry = Registry.open(used.home, database_url=used.database_url, store=used.store)
        return cls(registry, used)

    def close(self) -> None:
        """Close the database's connections."""
        self.registry.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, reference: str) -> VersionRecord:
        """The version that `NAME[:VERSION|@ALIAS]` or `sha256:prefix` names."""
        with translated():
            return self.registry.get(reference)

    def path(self, record: VersionRecord) -> Path:
        """A readable path of a version's file: where it lies, else in the store.

        Raises NotFoundError when it is nowhere, saying where it was last seen.
        """
        with translated():
            for location in self.registry.locations(reference=record.reference, missing=False):
                place = Path(location.root) / location.relpath
                if place.is_file() and place.stat().st_size == record.size:
                    return place
            if record.stored:
                return self.registry.blobs.path(record.file_sha256)
            seen = self.registry.locations(reference=record.reference)
        where = f": last seen at {Path(seen[0].root) / seen[0].relpath}" if seen else ""
        raise NotFoundError(f"the file of {record.reference} is missing{where}; run `lorahub repair`")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make one transaction of all verbs inside."""
        with translated(), self.registry.transaction():
            yield
