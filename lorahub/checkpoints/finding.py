"""Which files a checkpoint consists of: a single file, or the folders of a diffusers pipeline with their shards.

The rule: where a folder holds the same weights several times (`model.safetensors`, `model.fp16.safetensors`), one set is
taken and the choice is said. A set with a missing shard is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorahub.errors import FileFormatError, NotFoundError, UsageError

COMPONENTS = ("unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3")
"""Folders of a pipeline that hold what adapters touch."""
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_STEMS = ("diffusion_pytorch_model", "model")
_FILE = re.compile(
    r"(?P<stem>[^.]+?)(\.(?P<variant>\w+))?(-(?P<shard>\d+)-of-(?P<count>\d+))?(\.(?P<late>\w+))?\.safetensors"
)
_PREFERRED = ("", "fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Found:
    """file -> component ("" in a single file, which names components in its keys), and what was chosen."""

    files: Mapping[Path, str]
    notes: tuple[str, ...]


def find(path: Path, variant: str | None) -> Found:
    """The files of the checkpoint at `path`; `variant` as in `model.fp16.safetensors`, "" for none.

    Raises NotFoundError when something is missing, FileFormatError for pickles, UsageError when there is a choice.
    """
    if not path.exists():
        raise NotFoundError(f"no such file: {path}")
    if not path.is_dir():
        return Found({path: ""}, ()) if _readable(path) else Found({}, ())
    folders = {name: path / name for name in COMPONENTS if (path / name).is_dir()}
    if not folders and (path / "config.json").is_file():
        folders = {_component(path): path}
    if not folders:
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise NotFoundError(
                f"{path} is no diffusers folder: expected one of {', '.join(COMPONENTS)}, a config.json beside the "
                f"weights, or a single .safetensors file, found {len(files)} of them"
            )
        return find(files[0], variant)
    found: dict[Path, str] = {}
    notes: list[str] = []
    for component, folder in folders.items():
        files, note = _weights(folder, variant)
        found |= dict.fromkeys(files, component)
        notes += [f"{component}: {note}"] if note else []
    return Found(found, tuple(notes))


def _readable(path: Path) -> bool:
    if path.suffix in _PICKLES:
        raise FileFormatError(
            f"{path} is a Python pickle, which can run code when read: convert it to .safetensors first"
        )
    match = _FILE.fullmatch(path.name)
    if match and match["shard"] and int(match["count"]) > 1:
        raise UsageError(f"{path} is one of {int(match['count'])} shards: name the folder they are in")
    return True


def _component(folder: Path) -> str:
    """Which component a folder with weights of its own holds, by its name or by the class in its configuration."""
    if folder.name in COMPONENTS:
        return folder.name
    config = _json(folder / "config.json")
    kind = str(config.get("_class_name") or next(iter(config.get("architectures") or [""])))
    for part, component in (("UNet", "unet"), ("Transformer", "transformer"), ("TextModel", "text_encoder")):
        if part in kind:
            return component
    raise FileFormatError(f"{folder / 'config.json'} is of a {kind or 'model without a class'}: expected a denoiser")


def _weights(folder: Path, variant: str | None) -> tuple[list[Path], str]:
    """The files of one component, and what was chosen among variants."""
    sets: dict[str, dict[Path, re.Match[str]]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        match = _FILE.fullmatch(file.name)
        if match and match["stem"] in _STEMS:
            sets.setdefault(match["variant"] or match["late"] or "", {})[file] = match
    if not sets:
        pickles = sorted(file for file in folder.iterdir() if file.suffix in _PICKLES)
        if pickles:
            _readable(pickles[0])
        raise NotFoundError(f"{folder} holds no {' or '.join(f'{stem}.safetensors' for stem in _STEMS)}")
    order = sorted(sets, key=lambda name: (_PREFERRED.index(name) if name in _PREFERRED else len(_PREFERRED), name))
    if variant is not None and variant not in sets:
        raise NotFoundError(f"{folder} has no variant {variant!r}: it has {', '.join(map(_called, order))}")
    taken = order[0] if variant is None else variant
    others = [_called(name) for name in order if name != taken]
    files = _whole(folder, taken, sets[taken])
    return files, f"took {_called(taken)}, not {', '.join(others)}" if others else ""


def _called(variant: str) -> str:
    return variant or "the plain files"


def _whole(folder: Path, variant: str, files: Mapping[Path, re.Match[str]]) -> list[Path]:
    """The files of one set: those its index names, or the one file, or all numbered shards."""
    for index in sorted(folder.glob("*.safetensors.index*.json")):
        if index.name.removesuffix(".json").partition(".index")[2].lstrip(".") != variant:
            continue
        named = _json(index).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise FileFormatError(f"{index} must map tensors to files under weight_map")
        wanted = sorted({str(name) for name in named.values()})
        missing = [name for name in wanted if folder / name not in files]
        if missing and any(match["shard"] is None for match in files.values()):
            break  # the index is of a set that is not here; a whole file is
        if missing:
            raise NotFoundError(f"{folder / missing[0]} is missing: {index.name} names it")
        return [folder / name for name in wanted]
    single = [file for file, match in files.items() if match["shard"] is None]
    if single:
        return single[:1]
    count = int(next(iter(files.values()))["count"])
    present = {int(match["shard"]) for match in files.values()}
    if present != set(range(1, count + 1)):
        raise NotFoundError(f"{folder} has {len(present)} of {count} shards: fetch the missing ones")
    return list(files)


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise FileFormatError(f"{path} must hold a JSON object")
    return content
