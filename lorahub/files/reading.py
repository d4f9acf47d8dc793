"""From a file to named tensors: safetensors and, when allowed, pickles.

The rule: weights stay memory-mapped; what is read eagerly is the header, which is checked first, and a hash.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, load_file
from torch import Tensor

from lorahub import header
from lorahub.errors import FileFormatError, NotFoundError, VerificationError
from lorahub.files.paths import PICKLE_SUFFIXES, display_name, read_config, refuse_pickle
from lorahub.files.store import finite, tensor_bytes


@dataclass(frozen=True, eq=False)
class Content:
    """Named tensors as one file brings them, with what is said about them."""

    name: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    config: Mapping[str, object] | None
    data_sha256: str


def read(path: Path, *, allow_pickle: bool = False, hashed: bool = True) -> Content:
    """Tensors, metadata and PEFT configuration of one adapter file.

    hashed: off leaves `data_sha256` empty, for a reader who knows the hash.
    Raises FileFormatError for a damaged file, and for a pickle unless `allow_pickle` (then it is loaded with
    `weights_only=True`, which runs no code).
    """
    if path.suffix in PICKLE_SUFFIXES:
        return _read_pickle(path, allow_pickle)
    described = header.read(path)
    tensors = _tensors(path)
    if tensors.keys() != described.tensors.keys():
        raise FileFormatError(f"{path} changed while it was read: try again when it is complete")
    digest = _data_sha256(tensors, described) if hashed else ""
    return Content(display_name(path), tensors, described.metadata, read_config(path), digest)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        str(path).encode()
    except UnicodeEncodeError:  # safetensors opens only paths that are valid Unicode; others are read into memory
        return load(path.read_bytes())
    return load_file(path)


def _data_sha256(tensors: Mapping[str, Tensor], described: header.Header) -> str:
    """`header.data_sha256` of the file that holds the tensors: they cover its data region without a gap.

    Mapped memory is hashed where it lies, so what is hashed is what will be computed with, and is fetched once.
    """
    digest = hashlib.sha256()
    for name, _ in sorted(described.tensors.items(), key=lambda item: item[1].start):
        digest.update(tensor_bytes(tensors[name]))
    return digest.hexdigest()


def _read_pickle(path: Path, allow_pickle: bool) -> Content:
    if not allow_pickle:
        raise refuse_pickle(path)
    if not path.is_file():
        raise NotFoundError(f"no such file: {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FileFormatError(f"{path} cannot be read as a pickle of plain tensors: {reason}") from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise FileFormatError(f"{path} should hold a dictionary of tensors, holds {type(content).__name__}")
    return Content(display_name(path), content, {}, None, tensors_sha256(content))


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hash of tensors that lie in no safetensors file: names, dtypes, shapes and bytes in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def check_finite(name: str, tensor: Tensor) -> None:
    """Raises VerificationError when a small tensor (an offset, an embedding) holds NaN or Inf."""
    if not finite(tensor):
        raise VerificationError(f"{name} holds NaN or Inf")
