"""A base model on disk, as its headers describe it, and the reading of one tensor.

The rule: nothing is kept in memory but names. A tensor is read into memory of its own, never mapped, so what was read is
gone when it is dropped.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lorahub import header
from lorahub.bases.model import Base
from lorahub.errors import FileFormatError, NotFoundError
from lorahub.header import Header

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""safetensors' names of the dtypes that can be read."""


class Rows(NamedTuple):
    """Rows `start` to `stop` of a parameter, which begin at row `at` of the tensor `key` in `file`."""

    start: int
    stop: int
    file: Path
    key: str
    at: int
    transposed: bool
    """The tensor holds the transpose of the parameter (OpenCLIP's text projection)."""


@dataclass(frozen=True)
class Stored:
    """Where one parameter lies.

    shape: as the base has it, or as stored when the base is unlisted. A 1x1 convolution may be stored as a linear layer,
    and the other way round. dtype: safetensors' name (`F16`).
    """

    shape: tuple[int, ...]
    dtype: str
    rows: tuple[Rows, ...]
    embedding: bool = False
    """Looks up rows instead of multiplying."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A whole base model on disk.

    base: name of the listed base, or `unlisted:dotted`. described: its tables, None when unlisted.
    layers: canonical layer name, as in `Adapter.layers` (`unet.down_blocks.0...to_q`) -> where its weight lies.
    vectors: canonical parameter name, as in `Adapter.offsets` (`unet.conv_in.bias`) -> where that 1-d parameter lies.
    files: the files with their headers, in order. others: (file, key) of tensors that are neither (VAE, schedules).
    evidence: why it is this base. notes: what was chosen or set aside, one line each.
    """

    path: Path
    base: str
    described: Base | None
    files: Mapping[Path, Header]
    layers: Mapping[str, Stored]
    vectors: Mapping[str, Stored]
    others: tuple[tuple[Path, str], ...]
    evidence: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """What people call it: the stem of the file, or the name of the folder."""
        return self.path.name if self.path.is_dir() else self.path.stem

    @cached_property
    def parts(self) -> Mapping[tuple[Path, str], tuple[tuple[str, Rows], ...]]:
        """(file, key) -> (layer or vector, its rows) for every parameter that lies in that tensor: what writing needs."""
        held: dict[tuple[Path, str], list[tuple[str, Rows]]] = {}
        for name, stored in (*self.layers.items(), *self.vectors.items()):
            for rows in stored.rows:
                held.setdefault((rows.file, rows.key), []).append((name, rows))
        return {where: tuple(found) for where, found in held.items()}

    def read(self, name: str) -> Tensor:
        """The weight of a layer, or a vector, by canonical name: of the base's shape and the stored dtype.

        Only its own rows of a fused tensor are read. Raises NotFoundError for a name that the checkpoint does not have,
        FileFormatError when the file cannot be read.
        """
        stored = self.layers.get(name) or self.vectors.get(name)
        if stored is None:
            raise NotFoundError(f"{self.path} has no layer {name!r}")
        pieces = [self._rows(rows) for rows in sorted(stored.rows)]
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return whole.reshape(stored.shape)

    def read_key(self, file: Path, key: str) -> Tensor:
        """A tensor as it is stored, by file and key. Raises FileFormatError when it cannot be read."""
        return self._bytes(file, key, 0, None)

    @cached_property
    def data_sha256(self) -> str:
        """Identity of the weights: sha256 of each file's data region, joined by `+`. Reads every file once."""
        return "+".join(header.data_sha256(file, described) for file, described in self.files.items())

    @cached_property
    def stand_in_sha256(self) -> str:
        """One hash that stands for all files of a folder, where a lineage wants one; "" for a single file."""
        return hashlib.sha256(self.data_sha256.encode()).hexdigest() if len(self.files) > 1 else ""

    def _rows(self, rows: Rows) -> Tensor:
        if rows.transposed:
            return self._bytes(rows.file, rows.key, 0, None).T[rows.at : rows.at + rows.stop - rows.start]
        return self._bytes(rows.file, rows.key, rows.at, rows.at + rows.stop - rows.start)

    def _bytes(self, file: Path, key: str, first: int, last: int | None) -> Tensor:
        """Rows `first` to `last` of a tensor; all of it when `last` is None."""
        info = self.files[file].tensors[key]
        dtype = DTYPES.get(info.dtype)
        if dtype is None:
            raise FileFormatError(f"{file}: {key} has dtype {info.dtype}, expected one of {', '.join(DTYPES)}")
        shape = info.shape if last is None else (last - first, *info.shape[1:])
        row = math.prod(info.shape[1:]) * dtype.itemsize
        buffer = torch.empty(math.prod(shape) * dtype.itemsize, dtype=torch.uint8)
        array: Any = buffer.numpy()
        view = memoryview(array)
        try:
            with file.open("rb", buffering=0) as stream:
                stream.seek(self.files[file].data_start + info.start + first * row)
                done = 0
                while done < len(view):
                    count = stream.readinto(view[done:])
                    if not count:
                        raise FileFormatError(f"{file} ends within {key}: it changed while it was read")
                    done += count
        except OSError as error:
            raise FileFormatError(f"cannot read {file}: {error.strerror}") from None
        return buffer.view(dtype).reshape(shape)
