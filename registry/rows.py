"""Rows to frozen records and back. What people said (overrides) wins over what was found, here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any, TypeVar

from registry.models import LocationRow, RecipeRow, ValidationRow, Version
from registry.records import OVERRIDABLE, Facts, Location, Recipe, RunSettings, Validation, VersionRecord

T = TypeVar("T")


def in_force(row: Version, field: str) -> Any:
    """What people said of a field, else what was found."""
    return row.overrides.get(field, getattr(row, field))


def version_record(row: Version) -> VersionRecord:
    """The version with its overrides applied."""
    run = in_force(row, "run")
    return VersionRecord(
        id=row.id,
        name=row.adapter.name,
        number=row.number,
        latest=row.latest,
        kind=row.kind,
        base=row.base,
        base_detected=row.base_detected,
        base_declared=row.base_declared,
        evidence=tuple(row.evidence),
        overrides=dict(row.overrides),
        file_sha256=row.file_sha256,
        hashed=row.hashed,
        data_sha256=row.data_sha256,
        fingerprint=row.fingerprint,
        autov3=row.autov3,
        size=row.size,
        format=row.format,
        ranks={component: tuple(ranks) for component, ranks in row.ranks.items()},
        layers=dict(row.layers),
        parameters=row.parameters,
        dtype=row.dtype,
        scale=row.scale,
        trigger_words=tuple(in_force(row, "trigger_words")),
        licence=in_force(row, "licence"),
        previews=tuple(row.previews),
        source=dict(row.source),
        run=None if run is None else RunSettings(**run),
        tags=tuple(tag.tag for tag in row.tags),
        aliases=tuple(alias.alias for alias in row.aliases),
        notes=row.notes,
        stored=row.stored,
        created_at=row.created_at,
        seen_at=row.seen_at,
        deleted_at=row.deleted_at,
    )


def write_facts(row: Version, facts: Facts, norms: Mapping[str, float] | None) -> None:
    """Write what was found into the row, then what is in force."""
    for field in ("file_sha256", "hashed", "data_sha256", "fingerprint", "autov3", "size", "format", "base_detected"):
        setattr(row, field, getattr(facts, field))
    for field in ("base_declared", "rank", "parameters", "dtype", "scale", "licence"):
        setattr(row, field, getattr(facts, field))
    row.kind_found = facts.kind
    row.ranks = {component: list(ranks) for component, ranks in facts.ranks.items()}
    row.layers = dict(facts.layers)
    row.trigger_words = list(facts.trigger_words)
    row.previews = list(facts.previews)
    row.source = dict(facts.source)
    row.run = None if facts.run is None else asdict(facts.run)
    row.evidence = list(facts.evidence)
    if norms is not None:
        row.norms = norms
    write_overrides(row, row.overrides)


def write_overrides(row: Version, overrides: Mapping[str, Any]) -> None:
    """Set what people said, and with it the base and kind in force."""
    row.overrides = dict(overrides)
    row.kind = overrides.get("kind", row.kind_found)
    row.base = overrides.get("base", row.base_detected or row.base_declared)


def found(row: Version) -> dict[str, Any]:
    """What was found for each field that can be overridden."""
    return dict(
        zip(
            OVERRIDABLE,
            ((row.base_detected, row.base_declared), row.kind_found, row.licence, row.trigger_words, row.run),
            strict=True,
        )
    )


def location_record(row: LocationRow, name: str, number: int) -> Location:
    """The location, with the reference of the version that lies there."""
    return Location(
        root=row.root,
        relpath=row.relpath,
        size=row.size,
        mtime_ns=row.mtime_ns,
        inode=row.inode,
        device=row.device,
        missing_since=row.missing_since,
        seen_at=row.seen_at,
        reference=f"{name}:{number}",
    )


def recipe_record(row: RecipeRow) -> Recipe:
    """The recipe as it was given."""
    return Recipe(
        method=row.method,
        expression=row.expression,
        tool=row.tool,
        settings=dict(row.settings),
        seed=row.seed,
        document=dict(row.document),
    )


def validation_record(row: ValidationRow) -> Validation:
    """The finding, with its time."""
    return Validation(
        check=row.check, severity=row.severity, message=row.message, layer=row.layer, tool=row.tool, at=row.at
    )


def chunks(values: Iterable[T], size: int = 5000) -> Iterator[Sequence[T]]:
    """Slices small enough for one IN list."""
    iterator = iter(values)
    while chunk := list(islice(iterator, size)):
        yield chunk
