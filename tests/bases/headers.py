"""Adapter layers as a parser would report them, made from the tables, and the headers of real files."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from math import prod
from pathlib import Path

import pytest

from lorahub.bases import Seen, flatten, get

REAL = Path(__file__).parents[3] / "shared" / "data" / "real-loras"


def attention(module: str) -> bool:
    return "attn" in module and ".to_" in module


def seen(
    base: str,
    component: str,
    prefix: str,
    pick: Callable[[str], bool] = lambda module: True,
    *,
    dialect: str | None = None,
    flat: bool = False,
) -> list[Seen]:
    """The layers of one component that `pick` chooses, under their canonical or another dialect's names."""
    part = get(base).components[component]
    layers = {module: (shape[0], prod(shape[1:])) for module, shape in part.layers.items()}
    if dialect is not None:
        layers = {
            alias: (sum(span.stop - span.start for span in spans), layers[spans[0].layer][1])
            for alias, spans in part.aliases[dialect].items()
            if spans[0].layer in layers
        }
    return [
        Seen(prefix, flatten(module) if flat else module, rows, columns)
        for module, (rows, columns) in layers.items()
        if pick(module)
    ]


def real(name: str) -> tuple[list[Seen], dict[str, str]]:
    """The layers and the metadata of a real kohya or diffusers file; the test is skipped where it is not at hand."""
    path = REAL / name
    if not path.exists():
        pytest.skip(f"the real file {path} is not on this machine")
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", {})
    layers: list[Seen] = []
    for key, entry in header.items():
        for down, up in ((".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight")):
            if key.endswith(down):
                name = key.removesuffix(down)
                prefix = next(p for p in ("lora_unet", "lora_te", "unet") if name.startswith(p))
                shape = entry["shape"]
                rows = header[name + up]["shape"][0]
                layers.append(Seen(prefix, name[len(prefix) + 1 :], rows, prod(shape[1:]), len(shape)))
    return layers, metadata
