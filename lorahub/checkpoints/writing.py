"""A checkpoint file written from another: every byte the same but the tensors that are edited and the metadata.

The rule: the file streams through two buffers of a few megabytes, on any device: what takes time is reading and writing,
so tensors are not batched. Edited ones are widened to float32, edited, and rounded once. Nothing is renamed or checked
here: the caller hands a temporary path and does both.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lorahub.checkpoints.checkpoint import DTYPES
from lorahub.errors import FileFormatError, VerificationError
from lorahub.header import Header, TensorInfo

CHUNK_BYTES = 8 * 2**20
"""Of a tensor in float32, at a time: small enough to stay in the processor's caches, large enough for its products."""

_EDITABLE = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}


@dataclass(frozen=True)
class Edit:
    """What is to become of one tensor.

    rows: called with rows of it as a float32 matrix [n, columns] (float64 for a tensor in float64), all dimensions after
    the first flattened, and the number of the first of them; edits them in place. whole: it must get all rows at once.
    """

    rows: Callable[[Tensor, int], None]
    whole: bool = False


def rewrite(
    source: Path,
    described: Header,
    target: Path,
    edits: Mapping[str, Callable[[], Edit]],
    metadata: Mapping[str, str],
    *,
    late: Callable[[], Mapping[str, str]] | None = None,
    device: str = "cpu",
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Write `target` as `source` with `edits` (key -> what makes its edit) applied and `metadata` as its own; fsync it.

    late: called after the last tensor; for every entry of the result, its value must be as long as the value that
    `metadata` holds for it, which it replaces (a hash that is known only then). advance: called after every edited tensor.
    Raises FileFormatError for a tensor of a dtype that cannot be edited and for a source that ends early,
    VerificationError for NaN, Inf, and numbers that the tensor's dtype cannot hold; OSError when the disk is full.
    """
    start, length = _header(described, metadata)
    with source.open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
        stream = _Stream(source, reader, writer, device)
        _write(writer, memoryview(start))
        reader.seek(described.data_start)
        for name, info in sorted(described.tensors.items(), key=lambda item: item[1].start):
            if name in edits:
                _edit(stream, name, info, edits[name]())
                advance()
            else:
                _copy(source, reader, writer, info.stop - info.start)
        if late is not None:
            final, _ = _header(described, {**metadata, **late()})
            if len(final) != length:
                raise AssertionError("a late metadata value differs in length from its placeholder")
            writer.seek(0)
            _write(writer, memoryview(final))
        os.fsync(writer.fileno())


def _header(described: Header, metadata: Mapping[str, str]) -> tuple[bytes, int]:
    """The header of the source with other metadata; the order of its tensors and their places stay as they are."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, info in described.tensors.items():
        entries[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [info.start, info.stop]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, len(text) + 8


@dataclass(frozen=True)
class _Stream:
    """The two files, and memory that every tensor uses again: fresh pages cost as much as the arithmetic."""

    source: Path
    reader: BinaryIO
    writer: BinaryIO
    device: str
    buffers: dict[tuple[torch.dtype, str], Tensor] = field(default_factory=dict)

    def buffer(self, rows: int, columns: int, dtype: torch.dtype, device: str) -> Tensor:
        """[rows, columns]; of one dtype and device there is one, so a tensor in float32 is edited in place."""
        held = self.buffers.get((dtype, device))
        if held is None or held.numel() < rows * columns:
            held = self.buffers[dtype, device] = torch.empty(rows * columns, dtype=dtype, device=device)
        return held[: rows * columns].reshape(rows, columns)


def _edit(stream: _Stream, name: str, info: TensorInfo, edit: Edit) -> None:
    if info.dtype not in _EDITABLE:
        raise FileFormatError(
            f"{stream.source}: {name} has dtype {info.dtype}, and only {', '.join(sorted(_EDITABLE))} can be added to"
        )
    dtype = DTYPES[info.dtype]
    working = torch.float64 if dtype == torch.float64 else torch.float32
    count, columns = (info.shape[0], math.prod(info.shape[1:])) if info.shape else (1, 1)
    step = count if edit.whole else max(1, min(count, CHUNK_BYTES // max(1, columns * working.itemsize)))
    stored = stream.buffer(step, columns, dtype, "cpu")
    wide = stream.buffer(step, columns, working, stream.device)
    for first in range(0, count, step):
        narrow, matrix = stored[: min(step, count - first)], wide[: min(step, count - first)]
        fill(stream.source, stream.reader, narrow)
        matrix.copy_(narrow)
        edit.rows(matrix, first)
        narrow.copy_(matrix)
        if not _fits(matrix, narrow):
            limit = torch.finfo(dtype).max
            raise VerificationError(
                f"{name} would hold NaN, Inf or numbers beyond {limit:.3g}, which {info.dtype} cannot hold"
            )
        _write(stream.writer, _memory(narrow))


def _fits(wide: Tensor, narrow: Tensor) -> bool:
    """Whether `narrow` is `wide` rounded without overflow, and no NaN. Extremes tell; those of float8 have to be the wide."""
    if narrow.dtype.itemsize > 1:
        return all(math.isfinite(end) for end in narrow.aminmax())
    limit = torch.finfo(narrow.dtype).max
    low, high = wide.aminmax()
    return bool(-limit <= low) and bool(high <= limit)


def _copy(source: Path, reader: BinaryIO, writer: BinaryIO, size: int) -> None:
    buffer = memoryview(bytearray(min(size, CHUNK_BYTES)))
    while size:
        part = buffer[: min(size, len(buffer))]
        _read(source, reader, part)
        _write(writer, part)
        size -= len(part)


def _memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, to read into and write from."""
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def fill(source: Path, reader: BinaryIO, tensor: Tensor) -> None:
    """Read a contiguous tensor on the CPU from where the file stands. Raises FileFormatError when the file ends early."""
    _read(source, reader, _memory(tensor))


def _read(source: Path, reader: BinaryIO, into: memoryview) -> None:
    done = 0
    while done < len(into):
        count = reader.readinto(into[done:])  # type: ignore[attr-defined]
        if not count:
            raise FileFormatError(f"{source} ends early: it changed while it was read")
        done += count


def _write(writer: BinaryIO, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += writer.write(data[done:])
