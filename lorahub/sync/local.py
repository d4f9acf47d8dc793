"""The local side: which version is the newest, and the bytes of it that can be sent."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from lorahub.errors import NotFoundError, UsageError, VerificationError
from lorahub.files.paths import read_config
from lorahub.hub.repository import USUAL_NAMES, RemoteFile
from lorahub.workspace.core import Workspace
from registry import Remote, VersionRecord

MAX_PREVIEW, MAX_PREVIEWS = 10 << 20, 4
LOADABLE = frozenset({"kohya", "diffusers", "diffusers-old", "comfy", "xlabs"})
"""Spellings that a pipeline of diffusers reads from one file; the others it needs converted."""


@dataclass(frozen=True)
class Local:
    """A version that is to be sent. `previews` are images by their paths in a repository."""

    record: VersionRecord
    file: Path
    previews: dict[str, Path] = field(default_factory=dict)

    def is_at(self, there: RemoteFile) -> bool:
        """Whether the file there has the same bytes; the Hub may keep a small one in git, which knows it by another hash."""
        return there.sha256 == self.record.file_sha256 if there.sha256 is not None else there.is_same(self.file)


def newest(workspace: Workspace, name: str) -> VersionRecord | None:
    """The newest live version of a name; None when all are in the trash."""
    try:
        return workspace.get(name)
    except NotFoundError:
        return None


def to_send(workspace: Workspace, record: VersionRecord) -> Local:
    """The file of a version, checked to be one that can be sent.

    Raises UsageError for a file that was not hashed yet, or is not whole without another beside it; NotFoundError when
    it is nowhere.
    """
    if not record.hashed:
        raise UsageError(f"{record.reference} was indexed without reading it: run `lorahub scan` with hashes first")
    path = workspace.path(record)
    if read_config(path) is not None:
        raise UsageError(
            f"{record.reference} keeps its scale in adapter_config.json: make one file with "
            f"`lorahub convert {record.reference} --to diffusers --name {record.name}`, and push that"
        )
    return Local(record, path, _previews(record))


def check_bytes(local: Local) -> None:
    """Raises VerificationError unless the file still is what was registered."""
    with local.file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != local.record.file_sha256:
        raise VerificationError(
            f"{local.file} is not what was registered as {local.record.reference}: run `lorahub verify {local.record.name}`"
        )


def weights_path(remote: Remote | None) -> str:
    """Where in its repository an adapter lies, or is to lie: under the name that every loader looks for."""
    return remote.path if remote is not None else USUAL_NAMES[0]


def notes(record: VersionRecord) -> tuple[str, ...]:
    """What a person should know before publishing a version."""
    found = []
    if record.format not in LOADABLE:
        found.append(
            f"diffusers does not load the {record.format} spelling: `lorahub convert {record.reference} --to diffusers "
            f"--name {record.name}` makes one that it does"
        )
    elif record.format == "kohya" and record.scale is None:
        found.append(
            "its layers have different alphas, of which diffusers keeps one: "
            f"`lorahub convert {record.reference} --to kohya --name {record.name}` makes them alike"
        )
    if record.licence is None:
        found.append(f"it states no licence: `lorahub edit {record.reference} --licence ...`")
    return tuple(found)


def _previews(record: VersionRecord) -> dict[str, Path]:
    """The first few images that are still there and not too large."""
    there = [path for path in map(Path, record.previews) if path.is_file() and path.stat().st_size <= MAX_PREVIEW]
    return {f"images/preview-{n}{path.suffix.lower()}": path for n, path in enumerate(there[:MAX_PREVIEWS], 1)}
