"""Bytes on disk: adapters written so that a crash, a full disk or a second writer can never leave half a file.

The rule: everything is written under a temporary name beside the target, flushed to disk, checked, and only then renamed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorahub.errors import ConflictError, LorahubError, NotFoundError, VerificationError
from lorahub.formats.encode import Encoded, Entry

HASH_KEY = "sshs_model_hash"
"""sha256 of the data region, where sd-scripts and its readers look for it."""

_DTYPE_NAMES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64",
    torch.int32: "I32", torch.uint8: "U8",
}  # fmt: skip


def write_safetensors(path: Path, encoded: Encoded) -> str:
    """Write the file, one entry in memory at a time, fsync it, and return the sha256 of its data region.

    Entries are ordered by element size, so every tensor is aligned. The hash is put into the metadata afterwards, over a
    placeholder of the same length. Raises VerificationError when a value overflows its dtype.
    """
    entries = sorted(encoded.entries, key=lambda entry: -entry.dtype.itemsize)
    placeholder = "0" * 64
    header = _header(entries, {**encoded.metadata, HASH_KEY: placeholder})
    digest = hashlib.sha256()
    with path.open("wb") as file:
        file.write(header)
        for entry in entries:
            for (name, shape), tensor in zip(entry.tensors, entry.make(), strict=True):
                data = _bytes(name, shape, tensor)
                digest.update(data)
                file.write(data)
        # No string in the header can hold these unescaped quotes, so this is the entry itself.
        file.seek(header.index(f'"{HASH_KEY}":"{placeholder}"'.encode()) + len(HASH_KEY) + 4)
        file.write(digest.hexdigest().encode())
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write and fsync a small text file."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _header(entries: Sequence[Entry], metadata: dict[str, str]) -> bytes:
    described: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    position = 0
    for entry in entries:
        for name, shape in entry.tensors:
            size = entry.dtype.itemsize
            for length in shape:
                size *= length
            described[name] = {
                "dtype": _DTYPE_NAMES[entry.dtype],
                "shape": list(shape),
                "data_offsets": [position, position + size],
            }
            position += size
    text = json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode(
        errors="replace"
    )  # of odd file names
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(name: str, shape: tuple[int, ...], tensor: Tensor) -> memoryview:
    if tuple(tensor.shape) != shape:
        raise VerificationError(f"{name}: planned with shape {list(shape)}, made with {list(tensor.shape)}")
    if not finite(tensor):
        precision = str(tensor.dtype).removeprefix("torch.")
        raise VerificationError(
            f"{name} holds NaN or Inf, or does not fit {precision}: mend it, or choose a wider --dtype"
        )
    return tensor_bytes(tensor)


def finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite. Extremes tell: they are NaN when any element is, at a tenth of the cost."""
    return not tensor.numel() or not tensor.is_floating_point() or all(math.isfinite(end) for end in tensor.aminmax())


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The tensor's elements in row order, without a copy where they lie so in memory already."""
    array: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy(force=True)
    return memoryview(array)


def _of_adapter(path: Path) -> bool:
    return path.name in ("adapter_model.safetensors", "adapter_config.json")


def check_target(target: Path, *, force: bool) -> None:
    """Raises at once what `replacing` would raise for a target as it is; for before long work."""
    if not target.parent.is_dir():
        raise NotFoundError(f"no such folder: {target.parent}")
    if os.path.lexists(target) and not force:
        raise _exists(target)


@contextlib.contextmanager
def replacing(target: Path, *, force: bool, replaceable: Callable[[Path], bool] = _of_adapter) -> Iterator[Path]:
    """A temporary path beside `target` that takes its place when the block ends well, and vanishes when it does not.

    Works for files and folders; `replaceable` says which files of an existing folder may go with it. Raises
    ConflictError when the target exists and `force` is off (also when it appears meanwhile) and when a folder holds other
    files, NotFoundError when the folder to write in is missing, LorahubError when it cannot be written (disk full).
    """
    check_target(target, force=force)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        _move(temporary, target, force, replaceable)
        sync_folder(target.parent)
    except OSError as error:
        raise LorahubError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        _discard(temporary)


def _move(temporary: Path, target: Path, force: bool, replaceable: Callable[[Path], bool]) -> None:
    if temporary.is_dir():
        _move_folder(temporary, target, force, replaceable)
    elif not force:
        _link_or_refuse(temporary, target)
    elif target.is_dir():
        raise ConflictError(f"{target} is a folder: a file does not overwrite it, choose another name")
    else:
        temporary.replace(target)


def _move_folder(temporary: Path, target: Path, force: bool, replaceable: Callable[[Path], bool]) -> None:
    """Renaming cannot exchange folders, so the old one steps aside, and comes back when the new one cannot be named."""
    old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
    if os.path.lexists(target):
        if not force:
            raise _exists(target)
        _refuse_strangers(target, replaceable)
        target.rename(old)
    try:
        temporary.rename(target)
    except OSError as error:
        if os.path.lexists(old):
            old.rename(target)
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):  # it appeared a moment ago
            raise _exists(target) from None
        raise
    _discard(old)


def _refuse_strangers(folder: Path, replaceable: Callable[[Path], bool]) -> None:
    """Overwriting a folder deletes it, so it must hold nothing but what is replaced."""
    for path in folder.rglob("*"):
        if not path.is_dir() and not replaceable(path):
            raise ConflictError(
                f"{folder} also holds {path.name}, which would be lost: choose another name, or delete it"
            )


def _link_or_refuse(temporary: Path, target: Path) -> None:
    """Give the file its name only if that is still free; a hard link is the one atomic way to do both."""
    try:
        target.hardlink_to(temporary)
    except FileExistsError:
        raise _exists(target) from None
    except OSError:  # a file system without hard links: looking once more before renaming has to do
        if os.path.lexists(target):
            raise _exists(target) from None
        temporary.rename(target)


def _exists(target: Path) -> ConflictError:
    return ConflictError(f"{target} exists already: choose another name, or overwrite it with --force")


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, where the system allows opening a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
