"""What a safetensors file says of itself: names, dtypes, shapes, metadata. Bounded, stdlib only, no tensor is read.

The rule here: a header is hostile until proven well-formed. Every refusal is a FileFormatError of one line.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import math
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lorahub.errors import FileFormatError, NotFoundError

MAX_HEADER_BYTES = 16 * 2**20
"""Real adapters need 0.01 to 2 MiB. The bound keeps a hostile header under a second and 200 MB."""

_MAX_DIMENSIONS = 64
"""torch's own bound; the product of a hostile million of lengths would take minutes."""

DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32,
    "U16": 16, "U8": 8, "BOOL": 8, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip

_SCALAR_FORMATS = {
    "F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i", "I16": "<h", "I8": "<b", "U8": "<B",
    "U16": "<H", "U32": "<I", "U64": "<Q",
}  # fmt: skip

_IMPOSTORS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the weights: run `git lfs pull`"),
    (b"PK\x03\x04", "a ZIP archive (a PyTorch .pt/.ckpt or a download to unpack), not safetensors"),
    (b"\x80", "a Python pickle (.pt/.bin), not safetensors"),
    (b"<", "an HTML or XML page, probably a failed download"),
)


class TensorInfo(NamedTuple):
    """One tensor of a file: dtype as safetensors spells it, shape, byte range in the data region."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """A validated header; `data_start` is the offset in the file of the data region, `size` that of the file's end."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int
    size: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: info.shape for name, info in self.tensors.items()}


def read(path: Path) -> Header:
    """Read and validate the header of a safetensors file.

    Raises NotFoundError when there is no such file, FileFormatError (one line) for anything that is not a
    well-formed safetensors file: truncation, overlaps, gaps, duplicate keys, sizes that do not add up.
    """
    try:
        if not path.exists():
            raise NotFoundError(f"no such file: {path}")
        if not path.is_file():
            raise FileFormatError(f"{path} is not a regular file: expected a .safetensors file")
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
            length = _header_length(start, size, path)
            file.seek(8)
            raw = file.read(length)
    except OSError as error:
        raise FileFormatError(f"cannot read {path}: {error.strerror}") from None
    with collector_paused():
        return _validated(raw, size, path)


def _validated(raw: bytes, size: int, path: Path) -> Header:
    entries = _parse_json(raw, path)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FileFormatError(f"{path}: __metadata__ must map strings to strings")
    data_start = 8 + len(raw)
    tensors = {name: _tensor_info(name, entry, path) for name, entry in entries.items()}
    _check_layout(tensors, size - data_start, path)
    return Header(tensors, metadata, data_start, size)


def read_scalar(path: Path, header: Header, name: str) -> float:
    """The value of a one-element tensor (an alpha), read without torch."""
    info = header.tensors[name]
    if math.prod(info.shape) != 1:
        raise FileFormatError(f"{path}: {name} should hold one number, has shape {list(info.shape)}")
    with path.open("rb") as file:
        file.seek(header.data_start + info.start)
        data = file.read(info.stop - info.start)
    if info.dtype == "BF16":  # the upper half of a float32
        return float(struct.unpack("<f", b"\0\0" + data)[0])
    if info.dtype not in _SCALAR_FORMATS:
        raise FileFormatError(f"{path}: {name} has dtype {info.dtype}, expected a number")
    return float(struct.unpack(_SCALAR_FORMATS[info.dtype], data)[0])


def data_sha256(path: Path, header: Header) -> str:
    """sha256 of the data region: the identity of the weights, the same after metadata was edited (`sshs_model_hash`)."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(header.data_start)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Thousands of small objects are made at once: the cyclic collector would scan them all again and again.

    They are kept, so they join the old objects as if they had been scanned; the next full collection finds them there.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            if not gc.get_freeze_count():  # else somebody has frozen objects, and wants them to stay so
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def _header_length(start: bytes, size: int, path: Path) -> int:
    for magic, what in _IMPOSTORS:
        if start.startswith(magic) and start[8:9] != b"{":
            raise FileFormatError(f"{path} is {what}")
    if size < 8:
        raise FileFormatError(f"{path} is not safetensors: {size} bytes is too short for a header")
    length = int.from_bytes(start[:8], "little")
    if start[8:9] != b"{":
        raise FileFormatError(f"{path} is not safetensors: no JSON header follows the first 8 bytes")
    if length > MAX_HEADER_BYTES:
        raise FileFormatError(f"{path}: header claims {length} bytes, more than the {MAX_HEADER_BYTES} allowed")
    if 8 + length > size:
        raise FileFormatError(f"{path} is truncated: header claims {length} bytes, the file has {size}")
    return length


def _parse_json(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8")
        entries: dict[str, Any] = json.loads(text)  # an object: the first byte is known to be "{"
        repeated = _repeated_keys(text) if _may_repeat(raw, entries) else set()
    except (ValueError, RecursionError) as error:
        kind = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise FileFormatError(f"{path}: header is not valid JSON: {kind}") from None
    if repeated:
        raise FileFormatError(f"{path}: duplicate keys in the header: {', '.join(map(_short, sorted(repeated)[:3]))}")
    return entries


def _may_repeat(raw: bytes, entries: Mapping[str, Any]) -> bool:
    """Whether a key may come twice: json.loads keeps the last of equal keys and says nothing.

    Every tensor has one "dtype", "shape" and "data_offsets", so counting finds repetition, unless letters are escaped.
    """
    tensors = len(entries) - ("__metadata__" in entries)
    counts = [raw.count(key) for key in (b'"dtype"', b'"shape"', b'"data_offsets"')]
    return counts != [tensors] * 3 or raw.count(b'"__metadata__"') > 1 or b"\\u00" in raw


def _repeated_keys(text: str) -> set[str]:
    repeated: set[str] = set()

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated.update(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return dict(pairs)

    json.loads(text, object_pairs_hook=collect)
    return repeated


def _short(name: str) -> str:
    """A name as one short line, whatever it holds."""
    return repr(name if len(name) <= 120 else f"{name[:117]}...")


def _tensor_info(name: str, entry: Any, path: Path) -> TensorInfo:
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        bits = DTYPE_BITS[dtype]
    except (TypeError, KeyError, ValueError):
        raise FileFormatError(
            f"{path}: tensor {_short(name)} needs a known dtype, a shape and two data_offsets"
        ) from None
    if type(shape) is not list or len(shape) > _MAX_DIMENSIONS:
        raise FileFormatError(f"{path}: tensor {_short(name)} needs a shape of at most {_MAX_DIMENSIONS} lengths")
    for number in (*shape, start, stop):
        if type(number) is not int or not 0 <= number < 2**63:
            raise FileFormatError(
                f"{path}: tensor {_short(name)} has a shape or offsets that are not whole numbers >= 0"
            )
    if math.prod(shape) * bits != (stop - start) * 8:
        raise FileFormatError(
            f"{path}: tensor {_short(name)} of shape {shape} and dtype {dtype} does not fill its {stop - start} bytes"
        )
    return TensorInfo(dtype, tuple(shape), start, stop)


def _check_layout(tensors: Mapping[str, TensorInfo], available: int, path: Path) -> None:
    """The data region must be covered from its first to its last byte without gap or overlap."""
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if info.start != position:
            kind = "overlaps" if info.start < position else "leaves a gap after"
            raise FileFormatError(f"{path}: tensor {_short(name)} {kind} the tensor before it (byte {info.start})")
        position = info.stop
    if position > available:
        raise FileFormatError(f"{path} is truncated: tensors need {position} bytes, the file holds {available}")
    if position < available:
        raise FileFormatError(f"{path}: {available - position} bytes follow the last tensor")
