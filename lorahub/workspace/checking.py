"""Is what the registry says still so? Every file is read again and compared with its record; nothing is repaired here.

The rule: a file whose bytes changed while its size and time did not is damaged; one whose size or time changed is somebody's
work, and a scan will record it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from lorahub.errors import LorahubError
from lorahub.workspace.core import Workspace
from lorahub.workspace.errors import translated
from lorahub.workspace.facts import signed
from lorahub.workspace.structure import open_regular
from registry import DamagedError, Location, NotFoundError, Validation, VersionRecord

INTEGRITY = "integrity"
"""The check that compares bytes with the recorded hash."""
OK, DAMAGED, MISSING, CHANGED, UNHASHED = "ok", "damaged", "missing", "changed", "not hashed"


@dataclass(frozen=True)
class Checked:
    """One version: `ok`, `damaged`, `missing`, `changed` or `not hashed`, and why."""

    reference: str
    status: str
    messages: tuple[str, ...]


@dataclass(frozen=True)
class Verified:
    """All that was checked; `database` are the problems of the database itself, looked for when everything is checked."""

    checked: tuple[Checked, ...]
    database: tuple[str, ...]

    @property
    def damaged(self) -> bool:
        return bool(self.database) or any(one.status == DAMAGED for one in self.checked)

    @property
    def inconclusive(self) -> bool:
        return any(one.status in (MISSING, CHANGED) for one in self.checked)


def verify(
    workspace: Workspace,
    references: Iterable[str] = (),
    *,
    deep: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Verified:
    """Read the files of these versions, or of all, and compare; with `deep` look into the weights too.

    What is found is recorded with the versions where the registry can be written. progress: (bytes done, bytes in all).
    """
    wanted = tuple(references)
    with translated():
        records = [workspace.registry.get(one) for one in wanted] or list(workspace.registry.find())
        database = () if wanted else workspace.registry.check()
    total, done = sum(record.size for record in records), 0
    checked = []
    for record in records:
        one, findings = check(workspace, record, deep=deep)
        checked.append(one)
        if not workspace.registry.read_only:
            with translated():
                workspace.registry.record_validations(record.reference, signed(findings))
        done += record.size
        if progress is not None:
            progress(done, total)
    return Verified(tuple(checked), database)


def check(workspace: Workspace, record: VersionRecord, *, deep: bool = False) -> tuple[Checked, list[Validation]]:
    """Read every copy of one version's file."""
    with translated():
        places = workspace.registry.locations(reference=record.reference, missing=False)
    if not record.hashed:
        there = any(Path(place.root, place.relpath).is_file() for place in places)
        message = "run `lorahub scan` to hash it" if there else "its file is not where it was"
        return Checked(record.reference, UNHASHED if there else MISSING, (message,)), []
    found = [_check_blob(workspace, record)] if record.stored else []
    found += [_check_place(record, place) for place in places]
    if not any(status == OK for status, _ in found):
        found = found or [(MISSING, "its file is neither in the store nor at a known place")]
    findings = [_as_finding(status, message) for status, message in found]
    if deep and any(status == OK for status, _ in found):
        deeper = _look_deep(workspace, record)
        findings += deeper
        found += [
            (DAMAGED, f"{one.layer + ': ' if one.layer else ''}{one.message}")
            for one in deeper
            if one.severity == "error"
        ]
    worst = next((status for status in (DAMAGED, CHANGED, MISSING) if status in dict(found)), OK)
    if worst == MISSING and any(status == OK for status, _ in found):
        worst = OK  # another copy is whole
    messages = tuple(message for status, message in found if status != OK)
    return Checked(record.reference, worst, messages), findings


def sha256_of(path: Path) -> str:
    """The hash of a file's bytes; raises OSError, NotFoundError and FileFormatError."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _check_blob(workspace: Workspace, record: VersionRecord) -> tuple[str, str]:
    try:
        workspace.registry.blobs.verify(record.file_sha256)
    except DamagedError as error:
        return DAMAGED, str(error)
    except NotFoundError:
        return DAMAGED, f"its blob {record.file_sha256[:12]} is not in the store"
    return OK, "the stored file has its hash"


def _check_place(record: VersionRecord, place: Location) -> tuple[str, str]:
    path = Path(place.root) / place.relpath
    try:
        status = os.stat(path)  # noqa: PTH116
        if (status.st_size, status.st_mtime_ns) != (place.size, place.mtime_ns):
            return CHANGED, f"{path} changed since it was indexed: run `lorahub scan {place.root}`"
        if sha256_of(path) == record.file_sha256:
            return OK, f"{path} has its hash"
        return DAMAGED, f"{path} has other bytes than when it was indexed, though its size and time are the same"
    except FileNotFoundError:
        return MISSING, f"{path} is not there"
    except (OSError, LorahubError) as error:
        return MISSING, f"{path} cannot be read: {error}"


def _as_finding(status: str, message: str) -> Validation:
    severity = {OK: "ok", DAMAGED: "error"}.get(status, "warning")
    return Validation(check=INTEGRITY, severity=severity, message=message)


def _look_deep(workspace: Workspace, record: VersionRecord) -> list[Validation]:
    from lorahub.workspace.weights import READABLE, read_weights

    try:
        return list(read_weights(workspace.path(record), base=None).findings)
    except LorahubError as error:
        return [Validation(check=READABLE, severity="error", message=str(error))]
