"""What an archive says of its adapters, as frozen records; `plain.from_plain` reads them without trust."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version

from registry.records import Facts, Parent, Recipe, RunSettings, Validation

FORMAT = "lorahub-archive"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """What a person said instead of what was found; None: nothing."""

    base: str | None = None
    kind: str | None = None
    licence: str | None = None
    trigger_words: tuple[str, ...] | None = None
    run: RunSettings | None = None


@dataclass(frozen=True, kw_only=True)
class ArchivedVersion:
    """One version: what was found, what was said, where it came from, what checks found."""

    number: int
    created_at: datetime
    facts: Facts
    overrides: Overrides = Overrides()
    tags: tuple[str, ...] = ()
    notes: str = ""
    parents: tuple[Parent, ...] = ()
    recipe: Recipe | None = None
    validations: tuple[Validation, ...] = ()
    norms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ArchivedAdapter:
    """One name with those of its versions that were exported, and the aliases that point at them."""

    name: str
    versions: tuple[ArchivedVersion, ...]
    aliases: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole archive; `blobs` are the sizes of its files by sha256."""

    format: str
    schema: int
    tool: str
    adapters: tuple[ArchivedAdapter, ...]
    blobs: Mapping[str, int]


def tool() -> str:
    """This lorahub and its version."""
    try:
        return f"lorahub {version('lorahub-toolkit')}"
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "lorahub 0+source"


def blob_name(sha256: str) -> str:
    """The member of an archive that holds a file."""
    return f"blobs/{sha256}"
