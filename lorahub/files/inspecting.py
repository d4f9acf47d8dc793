"""What an adapter file is, from its header alone: format, base with evidence, ranks, scales. No torch, no tensor data.

The only bytes read beyond the header are the alphas, which are single numbers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lorahub import bases, header
from lorahub.bases.detect import Detection
from lorahub.errors import FileFormatError
from lorahub.files.paths import PICKLE_SUFFIXES, find_weights, read_config, refuse_pickle
from lorahub.formats.kinds import NOT_ADDITIVE
from lorahub.formats.layout import Layout, Module, parse, seen

PROVENANCE_KEY = "lorahub.provenance"


@dataclass(frozen=True)
class Part:
    """One component (`unet`, `text_encoder`, or the file's own prefix when the base is not known) of an adapter."""

    name: str
    layers: int
    kinds: Mapping[str, int]
    ranks: tuple[int, ...]
    """The distinct ranks, ascending."""
    scales: tuple[float, ...]
    """The distinct scales (alpha / rank), ascending."""
    parameters: int


@dataclass(frozen=True)
class Inspection:
    """Facts about one adapter file."""

    path: Path
    size: int
    format: str
    dtypes: Mapping[str, int]
    """dtype -> number of tensors"""
    detection: Detection
    parts: tuple[Part, ...]
    embeddings: tuple[str, ...]
    unknown: tuple[str, ...]
    """Keys that nobody understands; an adapter that has any is refused by the algebra."""
    not_additive: Mapping[str, str]
    """kind -> why arithmetic refuses the file; empty when it is a vector."""
    notes: tuple[str, ...]
    metadata: Mapping[str, str]
    provenance: Mapping[str, object] | None
    hashes: Mapping[str, str]
    """data_sha256, and whether the hash in the metadata agrees; empty unless asked for."""


def inspect(path: str | Path, *, hashes: bool = False) -> list[Inspection]:
    """What the adapter at `path` is; one entry per file (a PEFT folder may hold one per component).

    hashes: also read the weights once and compare their sha256 with the one the metadata claims.
    Raises NotFoundError, and FileFormatError for damaged files and pickles.
    """
    return [_inspect(file, hashes) for file in find_weights(Path(path))]


def _inspect(path: Path, hashes: bool) -> Inspection:
    if path.suffix in PICKLE_SUFFIXES:
        raise refuse_pickle(path)
    described = header.read(path)
    config = read_config(path)
    try:
        layout = parse(described.shapes, described.metadata, config)
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from None
    detection = bases.detect(seen(layout), described.metadata)
    refused = {module.kind for module in layout.modules} & NOT_ADDITIVE.keys()
    return Inspection(
        path,
        described.size,
        layout.format,
        dict(Counter(info.dtype for info in described.tensors.values())),
        detection,
        _parts(layout, detection, path, described),
        tuple(layout.embeddings),
        layout.unknown,
        {kind: NOT_ADDITIVE[kind] for kind in sorted(refused)},
        layout.notes,
        described.metadata,
        _provenance(described.metadata),
        _hashes(path, described) if hashes else {},
    )


def _parts(layout: Layout, detection: Detection, path: Path, described: header.Header) -> tuple[Part, ...]:
    known = detection.base or next(iter(detection.candidates), None)
    base = bases.get(known) if known else None
    groups: dict[str, list[Module]] = {}
    for module in layout.modules:
        spans = base.find(module.prefix, module.name) if base else None
        name = spans[0].layer.partition(".")[0] if spans else module.prefix or "(no prefix)"
        groups.setdefault(name, []).append(module)
    return tuple(_part(name, modules, path, described) for name, modules in groups.items())


def _part(name: str, modules: list[Module], path: Path, described: header.Header) -> Part:
    scales = set()
    for module in modules:
        scale = module.scale
        if scale is None:
            scale = module.scale_with(header.read_scalar(path, described, module.parts["alpha"]))
        scales.add(round(scale, 9))
    keys = [key for module in modules for role, key in module.parts.items() if role != "alpha"]
    return Part(
        name,
        len(modules),
        dict(Counter(module.kind for module in modules)),
        tuple(sorted({module.rank for module in modules if module.rank})),
        tuple(sorted(scales)),
        sum(_count(described.tensors[key].shape) for key in keys),
    )


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def _provenance(metadata: Mapping[str, str]) -> Mapping[str, object] | None:
    try:
        content = json.loads(metadata.get(PROVENANCE_KEY, "null"))
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _hashes(path: Path, described: header.Header) -> dict[str, str]:
    found = header.data_sha256(path, described)
    claimed = described.metadata.get("sshs_model_hash", "").removeprefix("0x").lower()
    verdict = "no hash in the metadata" if not claimed else ("agrees" if claimed == found else "differs")
    return {"data_sha256": found, "sshs_model_hash": claimed, "verdict": verdict}
