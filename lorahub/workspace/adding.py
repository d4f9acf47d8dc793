"""Add files: a copy goes into the store, or a file is recorded where it lies.

The rule: the blob first, its row after, so that a row always has its file; adding what is there already changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorahub.errors import LorahubError, UsageError
from lorahub.files.paths import display_name, find_weights, read_config
from lorahub.workspace.core import Workspace
from lorahub.workspace.errors import translated
from lorahub.workspace.facts import Found, full_facts
from lorahub.workspace.places import known_root, names
from registry import VersionRecord, suggest_name


@dataclass(frozen=True)
class Added:
    """One file: the version it is now, and whether that is `new` or was `known` already."""

    path: str
    reference: str
    sha256: str
    outcome: str
    stored: bool


@dataclass(frozen=True)
class Additions:
    """What was added, and (path, reason) of what was not."""

    added: tuple[Added, ...]
    failed: tuple[tuple[str, str], ...]


def add(
    workspace: Workspace,
    paths: Sequence[str | Path],
    *,
    in_place: bool = False,
    name: str | None = None,
    tags: Iterable[str] = (),
    kind: str | None = None,
    note: str = "",
    weights: bool = True,
    dry_run: bool = False,
) -> Additions:
    """Add each file as the next version of its name, which is that of the file unless given.

    weights: also read the weights, for fingerprint, norms and damage. One file that cannot be added does not stop the
    others; when there is only one, its error is raised. Raises UsageError for one name for several files.
    """
    if name is not None and len(paths) > 1:
        raise UsageError(f"one name for {len(paths)} files: add them one by one, or let each be called as its file is")
    added: list[Added] = []
    failed: list[tuple[str, str]] = []
    for path in paths:
        try:
            file = _file(Path(path), in_place)
            found = full_facts(file, weights=weights)
            chosen = name or suggest_name(display_name(file))
            if dry_run:
                added.append(_planned(workspace, file, found, chosen, in_place))
            else:
                added.append(_add(workspace, file, found, chosen, in_place, name is None, [*tags], kind, note))
        except LorahubError as error:
            if len(paths) == 1:
                raise
            failed.append((str(path), str(error)))
    return Additions(tuple(added), tuple(failed))


def _file(path: Path, in_place: bool) -> Path:
    """The one weights file that `path` stands for."""
    files = find_weights(path)
    if len(files) > 1:
        raise UsageError(
            f"{path} holds {len(files)} components in files of their own: "
            f"make one file with `lorahub convert {path} --to kohya -o NAME.safetensors`, and add that"
        )
    if not in_place and read_config(files[0]) is not None:
        raise UsageError(
            f"{path} keeps its scale in adapter_config.json, which a copy of the weights would lose: add it with "
            "--in-place, or make one file with `lorahub convert` and add that"
        )
    return Path(os.path.abspath(files[0]))  # noqa: PTH100


def _planned(workspace: Workspace, file: Path, found: Found, name: str, in_place: bool) -> Added:
    sha256 = found.facts.file_sha256
    with translated():
        same = [record for record in workspace.registry.find(file_sha256=sha256) if record.name == name]
    reference = same[0].reference if same else name
    return Added(str(file), reference, sha256, "known" if same else "new", not in_place)


def _add(
    workspace: Workspace,
    file: Path,
    found: Found,
    name: str,
    in_place: bool,
    named_by_file: bool,
    tags: list[str],
    kind: str | None,
    note: str,
) -> Added:
    registry, sha256 = workspace.registry, found.facts.file_sha256
    with translated():
        if not in_place:
            registry.blobs.put(file, expect=sha256)
        with workspace.transaction():
            if in_place:
                record, known = _add_in_place(workspace, file, found, name, named_by_file, tags, note)
            else:
                known = any(same.name == name for same in registry.find(file_sha256=sha256))
                record = registry.add_version(name, found.facts, norms=found.norms, tags=tags, notes=note, stored=True)
            if kind is not None:
                registry.edit(record.reference, kind=kind)
            registry.record_validations(record.reference, found.findings)
            if found.sketch is not None:
                registry.put_sketch(record.reference, found.sketch)
    return Added(str(file), record.reference, sha256, "known" if known else "new", record.stored)


def _add_in_place(
    workspace: Workspace, file: Path, found: Found, name: str, named_by_file: bool, tags: list[str], note: str
) -> tuple[VersionRecord, bool]:
    """What a scan recorded at this place keeps the name it has there, unless one is given."""
    registry = workspace.registry
    root, below = known_root(str(file.parent), registry.roots())
    relpath = f"{below}/{file.name}" if below else file.name
    here = replace(found.location(root, relpath), seen_at=found.read_at)
    if named_by_file and any(place.relpath == relpath for place in registry.locations(root=root)):
        reference, outcome = registry.place(here, found.facts, names=names(root, relpath), norms=found.norms)
        record = registry.tag(reference, *tags)
        return (registry.edit(reference, notes=note) if note else record), outcome == "same"
    known = any(same.name == name for same in registry.find(file_sha256=found.facts.file_sha256))
    return registry.add_version(name, found.facts, norms=found.norms, tags=tags, notes=note, location=here), known
