"""The frozen values that go into the registry and come out of it; database rows never leave the package.

`Facts` is what is known of a file when it is added. A `VersionRecord` is those facts with what people said since
(overrides, tags, notes) applied: its `kind`, `licence`, `trigger_words` and `run` are the values in force.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from registry.errors import InvalidError

KINDS = ("acceleration", "style", "subject", "control", "slider", "merged", "other")
OVERRIDABLE = ("base", "kind", "licence", "trigger_words", "run")
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HEX = re.compile(r"[0-9a-f]{1,64}", re.ASCII)

Json = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How to run an acceleration vector; None means the family does not say. `extra` holds what only one family has."""

    scheduler: str | None = None
    scheduler_args: Json = field(default_factory=dict)
    steps: int | None = None
    steps_min: int | None = None
    steps_max: int | None = None
    guidance_min: float | None = None
    guidance_max: float | None = None
    lora_scale: float | None = None
    extra: Json = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of one file.

    `ranks` are the distinct ranks and `layers` the number of layers of each component (`unet`, `te1`, ...). `scale` is
    the effective scale where all layers agree, None where they do not or it is not finite. `autov3` is the embedded
    hash as the file states it; `data_sha256` is computed. `source` says where it came from: `{"path": ...}`,
    `{"repo": ..., "commit": ...}`, `{"recipe": ...}`. Of a file that is not `hashed` yet, `file_sha256` is a stand-in that
    no other file shares: no reference finds it, and `Registry.place` replaces it.

    Raises:
        InvalidError: a hash, the kind, a size or the scale is not what it should be.
    """

    file_sha256: str
    size: int
    format: str
    kind: str = "other"
    base_detected: str | None = None
    base_declared: str | None = None
    evidence: tuple[str, ...] = ()
    ranks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    layers: Mapping[str, int] = field(default_factory=dict)
    parameters: int | None = None
    dtype: str | None = None
    scale: float | None = None
    data_sha256: str | None = None
    fingerprint: str | None = None
    autov3: str | None = None
    trigger_words: tuple[str, ...] = ()
    licence: str | None = None
    previews: tuple[str, ...] = ()
    source: Json = field(default_factory=dict)
    run: RunSettings | None = None
    hashed: bool = True

    def __post_init__(self) -> None:
        for noun, value in (("file sha256", self.file_sha256), ("data sha256", self.data_sha256)):
            if value is not None:
                check_sha256(value, noun)
        if self.autov3 is not None and not _HEX.fullmatch(self.autov3):
            raise InvalidError(f"expected AutoV3 in lower-case hexadecimal digits, got {self.autov3[:80]!a}")
        check_kind(self.kind)
        if self.size < 0:
            raise InvalidError(f"expected a size in bytes, got {self.size}")
        if self.scale is not None and not math.isfinite(self.scale):
            raise InvalidError(f"expected a finite scale or None, got {self.scale}")

    @property
    def autov2(self) -> str | None:
        """The short hash of A1111 and Civitai, the first ten digits of the file's sha256; None until it is hashed."""
        return self.file_sha256[:10] if self.hashed else None

    @property
    def rank(self) -> int:
        """The largest rank of any component, 0 when there is none."""
        return max((rank for ranks in self.ranks.values() for rank in ranks), default=0)


@dataclass(frozen=True, kw_only=True)
class VersionRecord(Facts):
    """One version of an adapter. `base` is the override if there is one, else the detected, else the declared base.

    `overrides` holds what a person said instead of what was found; `stored` says that the blob store holds the file.
    """

    id: int
    name: str
    number: int
    latest: bool
    base: str | None
    overrides: Json
    tags: tuple[str, ...]
    aliases: tuple[str, ...]
    notes: str
    stored: bool
    created_at: datetime
    seen_at: datetime
    deleted_at: datetime | None

    @property
    def reference(self) -> str:
        """The reference that names exactly this version."""
        return f"{self.name}:{self.number}"


@dataclass(frozen=True, kw_only=True)
class AdapterRecord:
    """One name: the numbers of its live versions, where its aliases point, and its newest live version."""

    name: str
    created_at: datetime
    versions: tuple[int, ...]
    aliases: Mapping[str, int]
    latest: VersionRecord


@dataclass(frozen=True, kw_only=True)
class Parent:
    """One term a version was made from. `reference` (`NAME:VERSION`) is None for a bare hash the registry never saw."""

    sha256: str
    weight: float = 1.0
    reference: str | None = None

    def __post_init__(self) -> None:
        check_sha256(self.sha256, "parent's sha256")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a version was made; `document` is the whole recipe, enough to make it again from the parents."""

    method: str
    expression: str
    tool: str
    settings: Json = field(default_factory=dict)
    seed: int | None = None
    document: Json = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Edge:
    """`child` was made from `parent` (both file sha256), as its term number `position`, with this weight."""

    child: str
    parent: str
    position: int
    weight: float


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """The family of one file: every ancestor and descendant by file sha256; None for files the registry never saw."""

    root: str
    nodes: Mapping[str, VersionRecord | None]
    edges: tuple[Edge, ...]


@dataclass(frozen=True, kw_only=True)
class Location:
    """A file in a folder the user owns. `relpath` is as the system spells it, undecodable bytes included."""

    root: str
    relpath: str
    size: int
    mtime_ns: int
    inode: int
    device: int
    missing_since: datetime | None = None
    seen_at: datetime | None = None
    reference: str | None = None


@dataclass(frozen=True, kw_only=True)
class Validation:
    """One finding of a check on a version. `severity` is `ok`, `info`, `warning` or `error`."""

    check: str
    severity: str
    message: str = ""
    layer: str | None = None
    tool: str = ""
    at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """A few numbers that stand for the weights of a version; those of one kind and base can be compared.

    `kind` names how it was made, `norm` is the length of the whole vector, `data` is for whoever made it to read.
    """

    kind: str
    base: str
    norm: float
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Remote:
    """Where an adapter is on the Hub, and what both sides held when they were last alike.

    `path` is the file in the repository that holds the weights. Its sha256 differs from the local one where the file was
    converted on its way here (a PEFT folder). `files` are the git ids of what else was exchanged, by path; `said` is what
    people said of the adapter (`lorahub.sync.document`), None while the repository holds nothing of the kind.
    """

    repo: str
    branch: str
    path: str
    commit: str
    local_sha256: str
    remote_sha256: str
    files: Mapping[str, str] = field(default_factory=dict)
    said: Json | None = None
    synced_at: datetime | None = None

    def __post_init__(self) -> None:
        check_sha256(self.local_sha256, "local sha256")
        check_sha256(self.remote_sha256, "remote sha256")


@dataclass(frozen=True, kw_only=True)
class AliasChange:
    """Who pointed an alias from which version to which, and when; None: it did not exist, or was removed."""

    alias: str
    previous: int | None
    number: int | None
    by: str | None
    at: datetime


@dataclass(frozen=True, kw_only=True)
class Info:
    """The registry in a few words; `journal` is SQLite's journal mode, `notes` what the user should know."""

    database: str
    schema: str
    journal: str | None
    search: str
    read_only: bool
    adapters: int
    versions: int
    trashed: int
    notes: tuple[str, ...]


def check_sha256(value: str, noun: str = "sha256") -> str:
    """The value itself; raises InvalidError unless it is 64 lower-case hexadecimal digits."""
    if not _SHA256.fullmatch(value):
        raise InvalidError(f"expected a {noun} of 64 lower-case hexadecimal digits, got {value[:80]!a}")
    return value


def check_kind(value: str) -> str:
    """The value itself; raises InvalidError unless it is one of `KINDS`."""
    if value not in KINDS:
        raise InvalidError(f"expected a kind among {', '.join(KINDS)}, got {value[:80]!a}")
    return value
