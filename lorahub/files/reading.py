"""From a path to named tensors: safetensors files, PEFT and diffusers folders, and (when allowed) pickles.

The rule: weights stay memory-mapped; what is read eagerly is the header, which is checked first, and a hash.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from lorahub import header
from lorahub.errors import FileFormatError, NotFoundError, UsageError, VerificationError

PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_WEIGHT_NAMES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")


@dataclass(frozen=True, eq=False)
class Content:
    """Named tensors as one file brings them, with what is said about them."""

    name: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    config: Mapping[str, object] | None
    data_sha256: str


def find_weights(path: Path) -> list[Path]:
    """The adapter files that `path` stands for: itself, or those of a folder (one per component in a PEFT folder).

    Raises NotFoundError when there is nothing, UsageError when a folder leaves a choice.
    """
    if not path.exists():
        raise NotFoundError(f"no such file: {path}")
    if not path.is_dir():
        return [path]
    for name in _WEIGHT_NAMES:
        if (path / name).is_file():
            return [path / name]
    parts = sorted(path.glob(f"*/{_WEIGHT_NAMES[0]}"))
    if parts:
        return parts
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return files
    if files:
        raise UsageError(f"{path} holds {len(files)} adapters: name one, such as {files[0]}")
    raise NotFoundError(f"{path} holds no adapter: expected one of {', '.join(_WEIGHT_NAMES)} or a .safetensors file")


def read(path: Path, *, allow_pickle: bool = False) -> Content:
    """Tensors, metadata and PEFT configuration of one adapter file.

    Raises FileFormatError for a damaged file, and for a pickle unless `allow_pickle` (then it is loaded with
    `weights_only=True`, which runs no code).
    """
    if path.suffix in PICKLE_SUFFIXES:
        return _read_pickle(path, allow_pickle)
    described = header.read(path)
    tensors = load_file(path)
    return Content(
        display_name(path), tensors, described.metadata, read_config(path), header.data_sha256(path, described)
    )


def display_name(path: Path) -> str:
    """What people call the adapter: the file's stem, or the folder's name for the fixed names inside folders."""
    if path.name in _WEIGHT_NAMES:
        folder = path.parent.resolve()
        return folder.name
    return path.stem


def read_config(path: Path) -> Mapping[str, object] | None:
    """The `adapter_config.json` beside PEFT weights, or None. Raises FileFormatError when it is not a JSON object."""
    config = path.with_name("adapter_config.json")
    if path.name != _WEIGHT_NAMES[0] or not config.is_file():
        return None
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{config} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise FileFormatError(f"{config} must hold a JSON object")
    return content


def _read_pickle(path: Path, allow_pickle: bool) -> Content:
    if not allow_pickle:
        raise FileFormatError(
            f"{path} is a Python pickle, which can run code when read: convert it, or pass --allow-pickle if you trust it"
        )
    if not path.is_file():
        raise NotFoundError(f"no such file: {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise FileFormatError(
            f"{path} cannot be read as a pickle of plain tensors: {str(error).splitlines()[0]}"
        ) from None
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
        digest.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def check_finite(name: str, tensor: Tensor) -> None:
    """Raises VerificationError when a small tensor (an offset, an embedding) holds NaN or Inf."""
    if not bool(torch.isfinite(tensor).all()):
        raise VerificationError(f"{name} holds NaN or Inf")
