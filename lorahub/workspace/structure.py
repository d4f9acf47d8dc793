"""What the layers of a file are, from its header alone, and fast: most files of a library differ in metadata only.

A header is the metadata and then the tensors. Files of one trainer and rank have the same text for the tensors, so what
it means is worked out once and remembered by its hash; a file seen before costs its metadata and some alphas. The rule:
the first of a kind goes through `lorahub.header` and all its checks, and the same text and length need no second look.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import struct
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from lorahub import bases, header
from lorahub.bases import declared
from lorahub.bases.detect import Detection
from lorahub.errors import FileFormatError
from lorahub.files.paths import read_config
from lorahub.formats.kinds import NOT_ADDITIVE
from lorahub.formats.layout import Layout, Module, parse, seen

REMEMBERED = 256
"""How many different structures are kept; each is some 50 kB."""

SAMPLED = 5
"""How many alphas of a component are read with the header."""

_START = re.compile(rb'\{ ?"__metadata__" ?: ?(?=\{)')
_CLAIMS = ("ss_", "sshs_", "modelspec.", "lorahub.")
"""Metadata that says nothing of the layers; what it claims of the base is part of the key."""


@dataclass(frozen=True)
class Alphas:
    """Alpha tensors of one component: (offset in the data region, length, dtype, rank)."""

    places: tuple[tuple[int, int, str, int], ...]


@dataclass(frozen=True)
class Component:
    """The layers of one component: how many, their distinct ranks, parameters, and the scales that are not in tensors."""

    name: str
    layers: int
    ranks: tuple[int, ...]
    parameters: int
    scales: frozenset[float]
    alphas: Alphas


@dataclass(frozen=True)
class Structure:
    """What the tensors of a header mean."""

    format: str
    dtypes: tuple[str, ...]
    """The most frequent first, alphas not counted."""
    detection: Detection
    components: tuple[Component, ...]
    layers: int
    unknown: tuple[str, ...]
    not_additive: tuple[str, ...]
    notes: tuple[str, ...]
    data_size: int


@dataclass(frozen=True)
class Described:
    """One file: its structure, its metadata, the scales of a sample of its layers, and the state it was in."""

    structure: Structure
    metadata: Mapping[str, str]
    scales: frozenset[float]
    data_start: int
    status: os.stat_result


_memory: OrderedDict[bytes, Structure] = OrderedDict()


def describe(path: Path) -> Described:
    """Read a file's header.

    Raises NotFoundError and FileFormatError like `lorahub.header.read`; FileFormatError for what is no adapter.
    """
    config = read_config(path)
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        split = _split(file.fileno(), status.st_size)
        structure: Structure | None = None
        metadata: dict[str, str] = {}
        key = b""
        if split is not None:
            metadata, rest, start = split
            key = _key(rest, status.st_size - start, metadata, config)
            structure = _memory.get(key)
        if structure is None:
            whole = header.read(path)
            metadata, start = dict(whole.metadata), whole.data_start
            structure = _understand(whole, config)
            if key:
                _memory[key] = structure
                if len(_memory) > REMEMBERED:
                    _memory.popitem(last=False)
        else:
            _memory.move_to_end(key)
        return Described(structure, metadata, _scales(file.fileno(), structure, start), start, status)


def open_regular(path: Path) -> BinaryIO:
    """The open file; raises what `header.read` says of a path that is no regular file, without ever waiting for one."""
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return os.fdopen(
                os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb"
            )
    except OSError:
        pass
    header.read(path)
    raise AssertionError("a path that cannot be opened was read")


def _split(descriptor: int, size: int) -> tuple[dict[str, str], str, int] | None:
    """(metadata, text of the tensors, start of the data) of a header that begins with its metadata; None of any other."""
    first = os.pread(descriptor, 64, 0)
    length, begun = int.from_bytes(first[:8], "little"), _START.match(first, 8)
    if begun is None or length > header.MAX_HEADER_BYTES or 8 + length > size:
        return None
    try:
        text = os.pread(descriptor, length, 8).decode("utf-8")
        metadata, end = json.JSONDecoder().raw_decode(text, begun.end() - 8)
    except (ValueError, RecursionError):
        return None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        return None
    return metadata, text[end:], 8 + length


def _key(rest: str, size: int, metadata: Mapping[str, str], config: Mapping[str, object] | None) -> bytes:
    other = {name: value for name, value in metadata.items() if not name.startswith(_CLAIMS)}
    claim = declared.read(metadata)
    digest = hashlib.sha256(rest.encode("utf-8", "surrogatepass"))
    digest.update(json.dumps([size, claim and [claim.key, claim.value], other, config], default=dict).encode())
    return digest.digest()


def _understand(whole: header.Header, config: Mapping[str, object] | None) -> Structure:
    layout = parse(whole.shapes, whole.metadata, config)
    detection = bases.detect(seen(layout), whole.metadata)
    dtypes = Counter(info.dtype for info in whole.tensors.values() if prod(info.shape) > 1)
    refused = {module.kind for module in layout.modules} & NOT_ADDITIVE.keys()
    return Structure(
        format=layout.format,
        dtypes=tuple(name for name, _ in dtypes.most_common()),
        detection=detection,
        components=_components(layout, detection, whole),
        layers=len(layout.modules),
        unknown=layout.unknown,
        not_additive=tuple(sorted(refused)),
        notes=layout.notes,
        data_size=whole.size - whole.data_start,
    )


def _components(layout: Layout, detection: Detection, whole: header.Header) -> tuple[Component, ...]:
    known = detection.base or next(iter(detection.candidates), None)
    base = bases.get(known) if known else None
    groups: dict[str, list[Module]] = {}
    for module in layout.modules:
        spans = base.find(module.prefix, module.name) if base else None
        name = spans[0].layer.partition(".")[0] if spans else module.prefix or "(no prefix)"
        groups.setdefault(name, []).append(module)
    return tuple(_component(name, modules, whole) for name, modules in groups.items())


def _component(name: str, modules: list[Module], whole: header.Header) -> Component:
    scales, alphas = set(), []
    for module in modules:
        if module.scale is not None:
            scales.add(module.scale)
        else:
            info = whole.tensors[module.parts["alpha"]]
            alphas.append((info.start, info.stop - info.start, info.dtype, module.rank))
    keys = [key for module in modules for role, key in module.parts.items() if role != "alpha"]
    return Component(
        name,
        len(modules),
        tuple(sorted({module.rank for module in modules if module.rank})),
        sum(prod(whole.tensors[key].shape) for key in keys),
        frozenset(scales),
        Alphas(tuple(alphas)),
    )


_FORMATS = {"F16": "<e", "F32": "<f", "F64": "<d", "I64": "<q", "I32": "<i", "I16": "<h", "I8": "<b", "U8": "<B"}


def every_scale(path: Path, described: Described) -> frozenset[float]:
    """The distinct scales of all layers: every alpha is read, which is quick once the whole file was."""
    with open_regular(path) as file:
        return _scales(file.fileno(), described.structure, described.data_start, sample=False)


def _scales(descriptor: int, structure: Structure, start: int, *, sample: bool = True) -> frozenset[float]:
    """The distinct scales of a file's layers, or of a sample of them: alphas lie far apart, and disks seek slowly."""
    scales: set[float] = set()
    for component in structure.components:
        scales |= component.scales
        places = component.alphas.places
        if sample and len(places) > SAMPLED:
            places = tuple(places[index * (len(places) - 1) // (SAMPLED - 1)] for index in range(SAMPLED))
        for offset, length, dtype, rank in places:
            scales.add(_number(os.pread(descriptor, length, start + offset), dtype) / (rank or 1))
    return frozenset(round(scale, 9) for scale in scales)


def _number(data: bytes, dtype: str) -> float:
    if dtype == "BF16" and len(data) == 2:  # the upper half of a float32
        return float(struct.unpack("<f", b"\0\0" + data)[0])
    if dtype not in _FORMATS or len(data) != struct.calcsize(_FORMATS[dtype]):
        raise FileFormatError(f"expected an alpha of one number, got {len(data)} bytes of {dtype}")
    return float(struct.unpack(_FORMATS[dtype], data)[0])
