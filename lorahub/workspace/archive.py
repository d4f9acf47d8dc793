"""Adapters in one file, for another registry: files and everything recorded of them.

An archive is taken in wholly or not at all: every hash is checked before the first file enters, and the records enter
in one transaction. What is there already is merged: tags are joined, and what a person said here stays, unless told
otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorahub.errors import VerificationError
from lorahub.workspace.attempt import attempt
from lorahub.workspace.bundle import Reader, Writer, reading, writing
from lorahub.workspace.errors import translated
from lorahub.workspace.manifest import (
    FORMAT,
    SCHEMA,
    ArchivedAdapter,
    ArchivedVersion,
    Manifest,
    Overrides,
    blob_name,
    tool,
)
from lorahub.workspace.naming import as_references, meant
from lorahub.workspace.plain import from_plain, to_plain
from registry.errors import InvalidError, NotFoundError

if TYPE_CHECKING:
    from lorahub.workspace.core import Workspace
    from registry.records import Facts, VersionRecord


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an archive holds; `size` is that of its files."""

    path: Path
    versions: tuple[str, ...]
    blobs: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What became of the versions in an archive, by their references here; `kept` are aliases that point elsewhere."""

    path: Path
    added: tuple[str, ...]
    merged: tuple[str, ...]
    unchanged: tuple[str, ...]
    kept: tuple[str, ...]
    blobs: int


@translated()
def export(
    workspace: Workspace,
    references: str | Iterable[str],
    path: str | Path,
    *,
    force: bool = False,
    dry_run: bool = False,
) -> Exported:
    """Write versions with their files into one archive; a bare name means all its versions, no reference at all: all.

    Raises ConflictError if `path` exists, NotFoundError and VerificationError for a file that is missing or changed.
    """
    path = Path(path)
    chosen = _chosen(workspace, as_references(references))
    files = {record.file_sha256: record for record in chosen}
    sizes = {sha256: files[sha256].size for sha256 in sorted(files)}
    if not dry_run:
        manifest = Manifest(
            format=FORMAT, schema=SCHEMA, tool=tool(), adapters=_adapters(workspace, chosen), blobs=sizes
        )
        with writing(path, force=force) as writer:
            writer.add_manifest(to_plain(manifest))
            for sha256, size in sizes.items():
                _add(workspace, writer, files[sha256], size)
    versions = tuple(record.reference for record in chosen)
    return Exported(path=path, versions=versions, blobs=len(sizes), size=sum(sizes.values()))


@translated()
def import_(workspace: Workspace, path: str | Path, *, overwrite: bool = False, dry_run: bool = False) -> Imported:
    """Take in all of an archive. Twice is as once. `overwrite` lets its overrides, notes and aliases win over those here.

    A version whose file the name has already is merged with it; another file becomes the name's next version. Raises
    VerificationError, and takes nothing, if anything in the archive is not what its manifest says.
    """
    path = Path(path)
    with reading(path) as bundle:
        manifest = _manifest(bundle)
        for sha256 in manifest.blobs:
            bundle.verify(blob_name(sha256), sha256)
        blobs = workspace.registry.blobs
        if not dry_run:
            for sha256 in manifest.blobs:
                blobs.put(bundle.open(blob_name(sha256)), expect=sha256)
    outcomes: dict[str, list[str]] = {"added": [], "merged": [], "unchanged": [], "kept": []}
    with attempt(workspace, dry_run=dry_run):
        for adapter in manifest.adapters:
            _take(workspace, adapter, outcomes, overwrite=overwrite, stored=not dry_run)
    return Imported(path=path, blobs=len(manifest.blobs), **{name: tuple(found) for name, found in outcomes.items()})


def _chosen(workspace: Workspace, references: tuple[str, ...]) -> tuple[VersionRecord, ...]:
    if not references:
        return workspace.registry.find()
    chosen = {record.id: record for reference in references for record in meant(workspace, reference)}
    return tuple(sorted(chosen.values(), key=lambda record: (record.name, record.number)))


def _adapters(workspace: Workspace, records: tuple[VersionRecord, ...]) -> tuple[ArchivedAdapter, ...]:
    names: dict[str, list[VersionRecord]] = {}
    for record in records:
        names.setdefault(record.name, []).append(record)
    return tuple(
        ArchivedAdapter(
            name=name,
            versions=tuple(_archived(workspace, record) for record in mine),
            aliases={alias: record.number for record in mine for alias in record.aliases},
        )
        for name, mine in names.items()
    )


def _archived(workspace: Workspace, record: VersionRecord) -> ArchivedVersion:
    registry, exact = workspace.registry, record.reference
    return ArchivedVersion(
        number=record.number,
        created_at=record.created_at,
        facts=_found(workspace, record),
        overrides=from_plain(Overrides, to_plain(record.overrides)),
        tags=record.tags,
        notes=record.notes,
        parents=registry.parents(exact),
        recipe=registry.recipe(exact),
        validations=registry.validations(exact),
        norms=registry.norms(exact),
    )


def _found(workspace: Workspace, record: VersionRecord) -> Facts:
    """What was found in the file, without what was said about it."""
    from registry import Facts

    if record.overrides:
        # The record shows what is in force; what an override hides is seen once it is forgotten, in a rehearsal.
        with attempt(workspace, dry_run=True):
            record = workspace.registry.edit(record.reference, reset=record.overrides)
    return Facts(**{field.name: getattr(record, field.name) for field in fields(Facts)})


def _add(workspace: Workspace, writer: Writer, record: VersionRecord, size: int) -> None:
    blobs = workspace.registry.blobs
    in_store = record.stored and blobs.stat(record.file_sha256) is not None
    path = blobs.path(record.file_sha256) if in_store else workspace.path(record)
    writer.add(blob_name(record.file_sha256), path, record.file_sha256, size)


def _manifest(bundle: Reader) -> Manifest:
    bundle.check_kind(FORMAT, SCHEMA, maker="export", takers={"lorahub-backup": "restore --backup"})
    try:
        manifest = from_plain(Manifest, bundle.manifest, "manifest")
    except InvalidError as error:
        raise VerificationError(f"{bundle.path}: its manifest is wrong: {error}") from None
    found = {version.facts.file_sha256: version.facts.size for each in manifest.adapters for version in each.versions}
    if found != manifest.blobs:
        raise VerificationError(f"{bundle.path}: its adapters and its list of files differ: nothing was taken from it")
    bundle.expect({blob_name(sha256): size for sha256, size in manifest.blobs.items()})
    return manifest


def _take(
    workspace: Workspace, adapter: ArchivedAdapter, outcomes: dict[str, list[str]], *, overwrite: bool, stored: bool
) -> None:
    registry = workspace.registry
    here = {record.file_sha256: record for record in _versions(workspace, adapter.name)}
    references: dict[int, str] = {}
    for version in sorted(adapter.versions, key=lambda version: version.number):
        before = here.get(version.facts.file_sha256)
        if before is None:
            reference = _new(workspace, adapter.name, version, stored)
            outcomes["added"].append(reference)
        else:
            reference = _merge(workspace, before, version, overwrite=overwrite, stored=stored)
            same = replace(registry.get(reference), seen_at=before.seen_at) == before
            outcomes["unchanged" if same else "merged"].append(reference)
        references[version.number] = reference
    now = {alias: record.reference for record in _versions(workspace, adapter.name) for alias in record.aliases}
    for alias, number in adapter.aliases.items():
        if number not in references:
            raise VerificationError(
                f"alias {alias!a} of {adapter.name!a} points at version {number}, which is not there"
            )
        if overwrite or alias not in now:
            registry.alias(references[number], alias, by=tool())
        elif now[alias] != references[number]:
            outcomes["kept"].append(f"{adapter.name}@{alias}")


def _versions(workspace: Workspace, name: str) -> tuple[VersionRecord, ...]:
    try:
        return workspace.registry.versions(name)
    except NotFoundError:
        return ()


def _new(workspace: Workspace, name: str, version: ArchivedVersion, stored: bool) -> str:
    registry = workspace.registry
    record = registry.add_version(
        name,
        version.facts,
        norms=version.norms or None,
        tags=version.tags,
        notes=version.notes,
        stored=stored,
        parents=_by_hash(version),
        recipe=version.recipe,
    )
    reference = record.reference
    # A next version takes over tags and overrides of the one before; this one has its own.
    registry.untag(reference, *(set(record.tags) - set(version.tags)))
    registry.edit(reference, reset=record.overrides, **_said(version))
    if version.validations:
        registry.record_validations(reference, version.validations)
    return reference


def _merge(
    workspace: Workspace, before: VersionRecord, version: ArchivedVersion, *, overwrite: bool, stored: bool
) -> str:
    registry = workspace.registry
    known = before.deleted_at is not None or registry.recipe(before.reference) is not None
    lineage: dict[str, Any] = {}
    if overwrite or not known:
        lineage = {"parents": _by_hash(version), "recipe": version.recipe}
    notes = version.notes if overwrite or not before.notes else ""
    record = registry.add_version(before.name, version.facts, tags=version.tags, notes=notes, stored=stored, **lineage)
    said = _said(version)
    if not overwrite:
        said = {field: value for field, value in said.items() if field not in before.overrides}
    if said:
        registry.edit(record.reference, **said)
    checked = {finding.check for finding in registry.validations(record.reference)}
    fresh = [finding for finding in version.validations if finding.check not in checked]
    if fresh:
        registry.record_validations(record.reference, fresh)
    return record.reference


def _said(version: ArchivedVersion) -> Mapping[str, Any]:
    given = {field.name: getattr(version.overrides, field.name) for field in fields(Overrides)}
    return {field: value for field, value in given.items() if value is not None}


def _by_hash(version: ArchivedVersion) -> list[Any]:
    """The parents without their names in the other registry, which may be another adapter's here."""
    return [replace(parent, reference=None) for parent in version.parents]
