"""From a file to what the registry records of it, in two depths.

`header_facts` reads the header and nothing else. `full_facts` also reads every byte once, for both hashes, and where it is
asked to, the weights: fingerprint and norms (only then is torch imported). The rule: what a file claims of itself is
recorded as a claim; a claim that turns out false is a finding.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lorahub.errors import FileFormatError
from lorahub.files.inspecting import PROVENANCE_KEY
from lorahub.files.paths import display_name
from lorahub.workspace import accelerators
from lorahub.workspace.structure import Described, describe, every_scale, open_regular
from registry.records import Facts, Location, Sketch, Validation

MAX_TRIGGERS, MAX_TRIGGER = 20, 100
MAX_TEXT = 200
HASHES = "hashes"
"""The check that compares a file with the hash in its metadata."""
_EMPTY = hashlib.sha256(b"").hexdigest()
"""What a trainer's bug writes as the hash of no data at all."""
_PREVIEWS = tuple(middle + suffix for middle in ("", ".preview") for suffix in (".png", ".jpg", ".jpeg", ".webp"))
_SLIDER = re.compile(r"(?<![a-z])sliders?(?![a-z])")
_CONTROL = re.compile(r"(?<![a-z])control[-_ .]?(?:lora|net)(?![a-z])")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Found:
    """What one reading of a file found: facts, norms per layer (None if not read), and findings of checks."""

    facts: Facts
    norms: Mapping[str, float] | None
    findings: tuple[Validation, ...]
    status: os.stat_result
    """Of the file, before the first byte was read."""
    read_at: datetime
    """When that was."""
    sketch: Sketch | None = None

    def location(self, root: str, relpath: str) -> Location:
        """The file as it was read, at a place."""
        return location(root, relpath, self.status)


def location(root: str, relpath: str, status: os.stat_result) -> Location:
    return Location(
        root=root,
        relpath=relpath,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        inode=status.st_ino,
        device=status.st_dev,
    )


def header_facts(path: Path, *, beside: Collection[str] | None = None) -> Found:
    """What the header and a few alphas say. Hashes are not known: `file_sha256` is a stand-in, and `hashed` is false.

    beside: the names of the files in the same folder, where the caller has listed it (for previews).
    Raises NotFoundError, and FileFormatError for a damaged file or one that holds no adapter.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100  keeps `..` after links as the shell means it
    read_at = datetime.now(UTC)
    described = describe(path)
    status = described.status
    stamp = f"{os.fsencode(path)!r} {status.st_size} {status.st_mtime_ns} {status.st_ino} {status.st_dev}"
    facts = _facts(path, described, beside)
    return Found(replace(facts, file_sha256=provisional(stamp)), None, (), status, read_at)


def provisional(stamp: str) -> str:
    """An identity for a file that has not been hashed: unlike that of any other place or state of a file."""
    return hashlib.sha256(f"lorahub: not hashed yet: {stamp}".encode()).hexdigest()


def full_facts(path: Path, *, weights: bool = True, beside: Collection[str] | None = None) -> Found:
    """Header, both hashes from one pass over the bytes, and with `weights` the fingerprint and the norm of each layer.

    Raises like `header_facts`; FileFormatError also when the file changes while it is read.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100
    read_at = datetime.now(UTC)
    described = describe(path)
    facts = _facts(path, described, beside)
    file_sha256, data_sha256 = hashes(path, described)
    scale = _one(every_scale(path, described))
    facts = replace(facts, file_sha256=file_sha256, data_sha256=data_sha256, scale=scale, hashed=True)
    findings = [_compare_hashes(described.metadata, data_sha256)]
    norms, sketch = None, None
    if weights:
        from lorahub.workspace.weights import read_weights

        read = read_weights(path)
        facts, norms, sketch = replace(facts, fingerprint=read.fingerprint), read.norms, read.sketch
        findings += read.findings
    return Found(facts, norms, signed(findings), described.status, read_at, sketch)


def signed(findings: Iterable[Validation]) -> tuple[Validation, ...]:
    """The findings with this tool's name on them."""
    try:
        tool = f"lorahub {version('lorahub-toolkit')}"
    except PackageNotFoundError:  # run from a source tree that was never installed
        tool = "lorahub"
    return tuple(replace(finding, tool=tool) for finding in findings)


def hashes(path: Path, described: Described) -> tuple[str, str]:
    """(sha256 of the file, sha256 of its data region). Raises FileFormatError when the file changes meanwhile."""
    whole, data = hashlib.sha256(), hashlib.sha256()
    with open_regular(path) as file:
        whole.update(file.read(described.data_start))
        while chunk := file.read(_CHUNK):
            whole.update(chunk)
            data.update(chunk)
        after = os.fstat(file.fileno())
    before = described.status
    if (after.st_size, after.st_mtime_ns, after.st_ino) != (before.st_size, before.st_mtime_ns, before.st_ino):
        raise FileFormatError(f"{path} changed while it was read: try again when nobody writes to it")
    return whole.hexdigest(), data.hexdigest()


def _facts(path: Path, described: Described, beside: Collection[str] | None) -> Facts:
    structure, metadata = described.structure, described.metadata
    if not structure.layers:
        raise FileFormatError(f"{path} holds no adapter layers that lorahub knows")
    detection = structure.detection
    name = display_name(path)
    names = [name, *(metadata[key] for key in ("modelspec.title", "ss_output_name") if metadata.get(key))]
    family = accelerators.recognise(names, detection.base)
    evidence = [*detection.evidence, *structure.notes]
    if structure.unknown:
        evidence.append(f"{len(structure.unknown)} keys are not understood, such as {structure.unknown[0][:MAX_TEXT]}")
    if structure.not_additive:
        evidence.append(f"not a vector: {', '.join(structure.not_additive)}")
    if family is not None:
        evidence.append(family.evidence)
    return Facts(
        file_sha256="0" * 64,
        hashed=False,
        size=described.status.st_size,
        format=structure.format,
        kind=_kind(names, metadata, family, detection.evidence),
        base_detected=detection.base,
        base_declared=detection.declared,
        evidence=tuple(evidence),
        ranks={part.name: part.ranks for part in structure.components},
        layers={part.name: part.layers for part in structure.components},
        parameters=sum(part.parameters for part in structure.components),
        dtype=structure.dtypes[0] if structure.dtypes else None,
        scale=_one(described.scales),
        autov3=_autov3(metadata),
        trigger_words=triggers(metadata),
        licence=(metadata.get("modelspec.license") or metadata.get("modelspec.licence") or "").strip()[:MAX_TEXT]
        or None,
        previews=previews(path, beside),
        source={"path": os.fsencode(path).decode("utf-8", "replace")},
        run=None if family is None else family.run,
    )


def _one(scales: frozenset[float]) -> float | None:
    """The scale that all layers have, if it is a number."""
    scale = next(iter(scales)) if len(scales) == 1 else None
    return scale if scale is not None and math.isfinite(scale) else None


def _kind(
    names: list[str], metadata: Mapping[str, str], family: accelerators.Recognised | None, evidence: tuple[str, ...]
) -> str:
    """Only what is plain: a style cannot be told from a subject by its header."""
    if PROVENANCE_KEY in metadata:
        return "merged"
    if family is not None:
        return "acceleration"
    said = " ".join(names).lower()
    if _SLIDER.search(said):
        return "slider"
    if _CONTROL.search(said) or any("a variant with extra input channels" in sentence for sentence in evidence):
        return "control"
    return "other"


def triggers(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The words the trainer states, then the most frequent tags of its captions; failing both, the trained name."""
    words = [word.strip() for word in metadata.get("modelspec.trigger_phrase", "").split(",")]
    try:
        sets = json.loads(metadata.get("ss_tag_frequency") or "{}")
    except (ValueError, RecursionError):  # a claim nobody can read
        sets = {}
    counts: Counter[str] = Counter()
    for tags in sets.values() if isinstance(sets, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, (int, float)) and count > 0:
                counts[tag.strip()] += count  # type: ignore[assignment]
    words += [tag for tag, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    if not any(words):
        words = [metadata.get("ss_output_name", "").strip()]
    return tuple([*dict.fromkeys(word[:MAX_TRIGGER] for word in words if word)][:MAX_TRIGGERS])


def previews(path: Path, beside: Collection[str] | None = None) -> tuple[str, ...]:
    """The images beside a file that show what it does: NAME.png, NAME.preview.jpg, ..."""
    wanted = [path.stem + ending for ending in _PREVIEWS]
    there = [name for name in wanted if (name in beside if beside is not None else (path.parent / name).is_file())]
    return tuple(os.fsencode(path.parent / name).decode("utf-8", "replace") for name in there)


def _claimed(metadata: Mapping[str, str]) -> str | None:
    """The sha256 of its data that a file states, None where it states none, or that of no data."""
    text = (metadata.get("sshs_model_hash") or metadata.get("modelspec.hash_sha256") or "").lower().removeprefix("0x")
    return text if re.fullmatch(r"[0-9a-f]{64}", text) and text != _EMPTY else None


def _autov3(metadata: Mapping[str, str]) -> str | None:
    claimed = _claimed(metadata)
    return None if claimed is None else claimed[:12]


def _compare_hashes(metadata: Mapping[str, str], data_sha256: str) -> Validation:
    claimed = _claimed(metadata)
    if claimed is None:
        return Validation(check=HASHES, severity="info", message="the metadata states no hash of the weights")
    if claimed == data_sha256:
        return Validation(check=HASHES, severity="ok", message="the weights have the hash that the metadata states")
    return Validation(
        check=HASHES,
        severity="warning",
        message=f"the metadata states sha256 {claimed[:12]} of the weights, they have {data_sha256[:12]}: "
        "they were changed, or their metadata copied",
    )
