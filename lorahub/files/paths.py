"""Where an adapter's weights lie, and what people call it. Names only: nothing is opened but a PEFT configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from lorahub.errors import FileFormatError, NotFoundError, UsageError

PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
PEFT_WEIGHTS = "adapter_model.safetensors"
_WEIGHT_NAMES = (PEFT_WEIGHTS, "pytorch_lora_weights.safetensors")
_COMPONENT = re.compile(r"(unet|transformer|text_encoder)(_\d)?")
"""Folders of PEFT weights that have such names, side by side, are one adapter."""


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


def is_one_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter itself (of PEFT, perhaps of several components), instead of holding adapters."""
    if (folder / PEFT_WEIGHTS).is_file():
        return True
    parts = [path.parent.name for path in folder.glob(f"*/{PEFT_WEIGHTS}")]
    return bool(parts) and all(_COMPONENT.fullmatch(part) for part in parts)


def display_name(path: Path) -> str:
    """What people call the adapter: the file's stem, or the folder's name for the fixed names inside folders."""
    return path.resolve().parent.name if path.name in _WEIGHT_NAMES else path.stem


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


def refuse_pickle(path: Path) -> FileFormatError:
    return FileFormatError(
        f"{path} is a Python pickle, which can run code when read: convert it, or pass --allow-pickle if you trust it"
    )
