"""Repair what can be repaired without losing anything: first a plan, then, if wanted, the same plan carried out.

The rule: no file of the user's is touched, no version and no edit is deleted; a damaged blob is kept, in quarantine.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from lorahub.errors import LorahubError
from lorahub.workspace.checking import INTEGRITY, sha256_of
from lorahub.workspace.core import Workspace
from lorahub.workspace.errors import translated
from lorahub.workspace.facts import location
from lorahub.workspace.places import known_root
from lorahub.workspace.walking import Walk
from registry import DamagedError, Location, NotFoundError, VersionRecord

RELINK, RESTORE, UNSTORE, MARK_MISSING, MARK_PRESENT = "relink", "restore", "unstore", "mark missing", "mark present"


@dataclass(frozen=True)
class Step:
    """One repair: what is done to which version, in words; `path` is the file it is done with."""

    action: str
    reference: str
    reason: str
    path: str | None = None


@dataclass(frozen=True)
class Repairs:
    """The plan, whether it was carried out, and the versions for which there is no cure."""

    steps: tuple[Step, ...]
    applied: bool
    beyond_repair: tuple[str, ...]


def repair(workspace: Workspace, *, under: Sequence[str | Path] = (), apply: bool = False) -> Repairs:
    """Look for what is amiss and how to mend it; do it with `apply`.

    Blobs that are gone, of another size, or were found damaged by `verify` come back from intact copies; files that moved are
    looked for by their hash in the known roots and in `under`; places are marked as they are.
    """
    steps = list(_places(workspace))
    steps += _blobs(workspace)
    found = list(_moved(workspace, [str(Path(os.path.abspath(folder))) for folder in under]))  # noqa: PTH100
    steps += found
    with translated():
        lost = {record.reference for record in workspace.registry.unreachable()}
    lost |= {step.reference for step in steps if step.action == UNSTORE}
    lost -= {step.reference for step in steps if step.action in (RELINK, MARK_PRESENT)}
    if apply:
        for step in steps:
            _apply(workspace, step)
    return Repairs(tuple(steps), apply, tuple(sorted(lost)))


def _places(workspace: Workspace) -> Iterator[Step]:
    """Places whose mark is not so."""
    with translated():
        places = workspace.registry.locations()
    for place in places:
        path = Path(place.root) / place.relpath
        reference = place.reference or ""
        if place.missing_since is None and not os.path.lexists(path):
            yield Step(MARK_MISSING, reference, f"{path} is not there", str(path))
        elif place.missing_since is not None and _as_recorded(path, place):
            yield Step(MARK_PRESENT, reference, f"{path} is there again", str(path))


def _as_recorded(path: Path, place: Location) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (place.size, place.mtime_ns)


def _blobs(workspace: Workspace) -> Iterator[Step]:
    """Blobs that are gone or damaged: brought back from a copy that has the right bytes, or given up."""
    registry = workspace.registry
    with translated():
        stored = [record for record in registry.find() if record.stored]
    for record in stored:
        reason = _wrong_blob(workspace, record)
        if reason is None:
            continue
        copy = next(_intact(workspace, record), None)
        if copy is not None:
            yield Step(RESTORE, record.reference, f"{reason}; {copy} has the right bytes", str(copy))
        else:
            yield Step(UNSTORE, record.reference, f"{reason}, and no intact copy is known")


def _wrong_blob(workspace: Workspace, record: VersionRecord) -> str | None:
    registry = workspace.registry
    with translated():
        blob = registry.blobs.stat(record.file_sha256)
        if blob is None:
            return "its blob is not in the store"
        if blob.size != record.size:
            return f"its blob has {blob.size} bytes, not {record.size}"
        doubts = [one for one in registry.validations(record.reference) if one.check == INTEGRITY]
        if not any(one.severity == "error" for one in doubts):
            return None
    try:
        registry.blobs.verify(record.file_sha256)
    except DamagedError:
        return "its blob is damaged"
    return None


def _intact(workspace: Workspace, record: VersionRecord) -> Iterator[Path]:
    """Copies of a version's file, under whatever name, that have its hash now."""
    with translated():
        for same in workspace.registry.find(file_sha256=record.file_sha256):
            for place in workspace.registry.locations(reference=same.reference):
                path = Path(place.root) / place.relpath
                if _has_hash(path, record):
                    yield path


def _has_hash(path: Path, record: VersionRecord) -> bool:
    try:
        return path.stat().st_size == record.size and sha256_of(path) == record.file_sha256
    except (OSError, LorahubError):
        return False


def _moved(workspace: Workspace, under: list[str]) -> Iterator[Step]:
    """Files of versions that are nowhere, found by their hash among files that are recorded nowhere."""
    registry = workspace.registry
    with translated():
        lost = [record for record in registry.unreachable() if record.hashed]
        if not lost:
            return
        roots = [*registry.roots(), *under]
        recorded = {(place.root, place.relpath) for place in registry.locations(missing=False)}
    by_size: dict[int, list[VersionRecord]] = defaultdict(list)
    for record in lost:
        by_size[record.size].append(record)
    for root in dict.fromkeys(roots):
        for file in Walk(Path(root)).files():
            wanted = by_size.get(file.status.st_size, [])
            if not wanted or (root, file.relpath) in recorded:
                continue
            path = Path(root) / file.relpath
            match = next((record for record in wanted if _has_hash(path, record)), None)
            if match is not None:
                wanted.remove(match)
                yield Step(RELINK, match.reference, f"its file is now at {path}", str(path))


def _apply(workspace: Workspace, step: Step) -> None:
    registry = workspace.registry
    path = Path(step.path) if step.path else None
    with translated():
        if step.action == UNSTORE or path is None:
            record = registry.get(step.reference)
            _quarantine(workspace, record)
            registry.set_stored(record.reference, False)
        elif step.action == RESTORE:
            record = registry.get(step.reference)
            _quarantine(workspace, record)
            registry.blobs.put(path, expect=record.file_sha256)
        else:
            root, below = known_root(str(path.parent), registry.roots())
            relpath = f"{below}/{path.name}" if below else path.name
            if step.action == MARK_MISSING:
                registry.mark_missing(root, [relpath])
            elif step.action == MARK_PRESENT:
                registry.mark_present(root, [relpath])
            else:
                here = location(root, relpath, path.stat())
                registry.locate(step.reference, replace(here, seen_at=datetime.now(UTC)))


def _quarantine(workspace: Workspace, record: VersionRecord) -> None:
    with suppress(NotFoundError):
        workspace.registry.blobs.quarantine(record.file_sha256)
