"""`lorahub.json`: what the registry knows of an adapter, in the repository beside its weights.

The rule: no clock, no host, no path, and a fixed order, so that the same adapter makes the same bytes; and nothing that
was meant for oneself: notes stay at home.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lorahub.errors import VerificationError
from lorahub.hub.reference import HubReference, parse, reads_as_hub
from lorahub.workspace.core import Workspace
from lorahub.workspace.errors import translated
from lorahub.workspace.plain import from_plain, to_plain
from registry import Parent, RunSettings, VersionRecord
from registry.errors import InvalidError
from registry.records import Recipe

NAME = "lorahub.json"
SCHEMA = 1
MAX_SIZE = 1 << 24
Json = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class FileNote:
    """The weights, and what was found in them."""

    path: str
    sha256: str
    data_sha256: str | None
    fingerprint: str | None
    size: int
    format: str
    dtype: str | None
    ranks: Mapping[str, tuple[int, ...]]
    layers: Mapping[str, int]
    parameters: int | None
    scale: float | None


@dataclass(frozen=True, kw_only=True)
class Said:
    """What people may say of an adapter, as it is in force: the part that is merged field by field."""

    base: str | None = None
    kind: str = "other"
    licence: str | None = None
    trigger_words: tuple[str, ...] = ()
    run: RunSettings | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ParentNote:
    """One term of the sum the adapter is, and where it can be had: found there by its hash, at whatever commit."""

    name: str
    weight: float
    sha256: str
    data_sha256: str | None = None
    repo: str | None = None
    path: str | None = None

    @property
    def place(self) -> HubReference | None:
        """Where it was on the Hub; None when it is on no Hub that we know of."""
        if self.repo is None:
            return parse(self.name) if reads_as_hub(self.name) else None
        return HubReference(self.repo, None, self.path)


@dataclass(frozen=True, kw_only=True)
class CheckNote:
    """One finding of a check."""

    check: str
    severity: str
    message: str = ""
    layer: str | None = None
    tool: str = ""


@dataclass(frozen=True, kw_only=True)
class Document:
    """All of `lorahub.json`."""

    schema: int
    name: str
    file: FileNote
    said: Said
    parents: tuple[ParentNote, ...] = ()
    recipe: Recipe | None = None
    validations: tuple[CheckNote, ...] = ()

    def to_bytes(self) -> bytes:
        """The file."""
        return (json.dumps(to_plain(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def describe(workspace: Workspace, record: VersionRecord, path: str) -> Document:
    """What is published of a version, its weights being at `path` in the repository."""
    with translated():
        registry = workspace.registry
        recipe = registry.recipe(record.reference)
        found = registry.validations(record.reference)
        terms = registry.parents(record.reference)
    checks = [CheckNote(**{field: getattr(each, field) for field in CheckNote.__dataclass_fields__}) for each in found]
    return Document(
        schema=SCHEMA,
        name=record.name,
        file=FileNote(
            path=path,
            sha256=record.file_sha256,
            data_sha256=record.data_sha256,
            fingerprint=record.fingerprint,
            size=record.size,
            format=record.format,
            dtype=record.dtype,
            ranks=dict(sorted(record.ranks.items())),
            layers=dict(sorted(record.layers.items())),
            parameters=record.parameters,
            scale=record.scale,
        ),
        said=said(record),
        parents=_parents(workspace, terms, recipe),
        recipe=None if recipe is None else replace(recipe, document=_sorted(recipe.document)),
        validations=tuple(sorted(checks, key=lambda note: (note.check, note.layer or "", note.message))),
    )


def said(record: VersionRecord) -> Said:
    """What is in force of what people may say."""
    return Said(
        base=record.base,
        kind=record.kind,
        licence=record.licence,
        trigger_words=record.trigger_words,
        run=record.run,
        tags=tuple(sorted(record.tags)),
    )


def read(content: bytes, what: str) -> Document:
    """The document in these bytes; raises VerificationError for anything else, saying what is wrong."""
    try:
        if len(content) > MAX_SIZE:
            raise VerificationError(f"it has {len(content)} bytes")
        plain = json.loads(content)
        if isinstance(plain, dict) and plain.get("schema") != SCHEMA:
            raise VerificationError(f"it has schema {plain.get('schema')!a}, this lorahub reads {SCHEMA}")
        return from_plain(Document, plain)
    except (ValueError, RecursionError, InvalidError, VerificationError) as error:
        raise VerificationError(f"{what}: {NAME} cannot be read: {str(error)[:200]}") from None


def _parents(workspace: Workspace, terms: tuple[Parent, ...], recipe: Recipe | None) -> tuple[ParentNote, ...]:
    told = [each for each in (recipe.document.get("parents") or () if recipe else ()) if isinstance(each, Mapping)]
    notes = []
    for index, term in enumerate(terms):
        named = told[index] if len(told) == len(terms) else {}
        note = ParentNote(
            name=str(named.get("name") or f"sha256:{term.sha256[:12]}"),
            weight=term.weight,
            sha256=term.sha256,
            data_sha256=str(named["data_sha256"]) if named.get("data_sha256") else None,
        )
        notes.append(_located(workspace, note, term))
    return tuple(notes)


def _located(workspace: Workspace, note: ParentNote, term: Parent) -> ParentNote:
    """With the place on the Hub where this very file is, if it was pushed or pulled."""
    if term.reference is None:
        return note
    record = workspace.get(term.reference)
    note = replace(note, name=record.name, data_sha256=record.data_sha256 or note.data_sha256)
    with translated():
        remote = workspace.registry.remote(record.name)
    if remote is not None and remote.local_sha256 == term.sha256 == remote.remote_sha256:
        return replace(note, repo=remote.repo, path=remote.path)
    source = record.source
    if isinstance(source.get("repo"), str) and source.get("sha256") == term.sha256:
        return replace(note, repo=source["repo"], path=str(source["path"]))
    return note


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _sorted(value[key]) for key in sorted(value)}
    return [_sorted(each) for each in value] if isinstance(value, (list, tuple)) else value
