"""Files that are not what their name says, and files that are broken: name -> bytes, and what may be said of them."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from tests.cli import adapters
from tests.cli.adapters import Tensors

STEM = "lora_unet_" + adapters.LAYERS[0].replace(".", "_")
DOWN, UP, ALPHA = f"{STEM}.lora_down.weight", f"{STEM}.lora_up.weight", f"{STEM}.alpha"


def raw(header: bytes | dict[str, object], data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file put together by hand."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def pair(down: tuple[int, int], up: tuple[int, int]) -> bytes:
    """Two F16 tensors side by side, with these byte ranges but the shapes of a rank-1 pair of 4 x 4."""
    return raw(
        {
            DOWN: {"dtype": "F16", "shape": [1, 4], "data_offsets": list(down)},
            UP: {"dtype": "F16", "shape": [4, 1], "data_offsets": list(up)},
        },
        bytes(max(down[1], up[1])),
    )


def changed(change: Callable[[Tensors], None]) -> bytes:
    """The style adapter after a change to its tensors."""
    tensors = adapters.kohya_tensors()
    change(tensors)
    return save({key: np.ascontiguousarray(value) for key, value in tensors.items()})


def duplicate() -> bytes:
    entry = '{"dtype":"F16","shape":[1,4],"data_offsets":[0,8]}'
    return raw(f'{{"{DOWN}":{entry},"{DOWN}":{entry}}}'.encode(), bytes(8))


def archive() -> bytes:
    content = BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("archive/data.pkl", b"x")
    return content.getvalue()


GOOD = save(adapters.kohya_tensors())
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 3000\n"

NOT_READABLE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes is too short"),
    "eight-bytes": (bytes(8), "not safetensors"),
    "truncated-header": (GOOD[:100], "truncated"),
    "truncated-data": (GOOD[:-100], "truncated"),
    "trailing-bytes": (GOOD + b"x", "1 bytes follow the last tensor"),
    "header-of-2-to-62": (raw(b"{}", length=2**62), "header claims 4611686018427387904 bytes"),
    "deep-json": (raw(b'{"a":' + b"[" * 200_000), "nested too deeply"),
    "not-json": (raw(b'{"a": nonsense}'), "not valid JSON"),
    "not-utf8": (raw(b'{"\xff\xfe": 1}'), "not valid JSON"),
    "duplicate-keys": (duplicate(), "duplicate keys"),
    "overlapping-offsets": (pair((0, 8), (4, 12)), "overlaps"),
    "gapped-offsets": (pair((0, 8), (16, 24)), "leaves a gap"),
    "offsets-backwards": (pair((8, 0), (8, 16)), "does not fill its -8 bytes"),
    "shape-is-not-the-span": (pair((0, 8), (8, 18)), "does not fill its 10 bytes"),
    "shape-overflows": (
        raw({DOWN: {"dtype": "F16", "shape": [2**62, 2**62], "data_offsets": [0, 8]}}, bytes(8)),
        "does not fill its 8 bytes",
    ),
    "negative-shape": (
        raw({DOWN: {"dtype": "F16", "shape": [-1, -4], "data_offsets": [0, 8]}}, bytes(8)),
        "not whole numbers",
    ),
    "unknown-dtype": (
        raw({DOWN: {"dtype": "F12", "shape": [1, 4], "data_offsets": [0, 8]}}, bytes(8)),
        "needs a known dtype",
    ),
    "metadata-is-a-list": (raw({"__metadata__": [1]}), "must map strings to strings"),
    "git-lfs-pointer": (LFS, "git lfs pull"),
    "html": (b"<!DOCTYPE html><html>not found</html>", "HTML"),
    "zip": (archive(), "a ZIP archive"),
    "pickle": (pickle.dumps({"a": [1.0] * 9}), "a Python pickle"),
    "orphan-down": (changed(lambda tensors: tensors.pop(UP)), "expected a tensor for 'up'"),
    "orphan-up": (changed(lambda tensors: tensors.pop(DOWN)), "expected a tensor for 'down'"),
    "rank-0": (
        changed(lambda tensors: tensors.update({DOWN: np.zeros((0, 320), "f2"), UP: np.zeros((320, 0), "f2")})),
        "found shape [320, 0]",
    ),
    "mismatched-ranks": (changed(lambda tensors: tensors.update({UP: np.zeros((320, 3), "f2")})), "(the rank of "),
}
"""Refused by every command with exit code 1: name -> (bytes, a part of the message)."""


def _dora(tensors: Tensors) -> None:
    tensors[f"{STEM}.dora_scale"] = np.ones((320, 1), "float32")


def _oft() -> bytes:
    return save({f"{STEM}.oft_blocks": np.zeros((4, 80, 80), "float32"), ALPHA: np.asarray(1.0, "float32")})


NOT_A_VECTOR: dict[str, tuple[bytes, int, str]] = {
    "unknown-keys": (changed(lambda tensors: tensors.update({"what.is.this": np.zeros(3, "f2")})), 1, "not understood"),
    "dora": (changed(_dora), 1, "DoRA"),
    "oft": (_oft(), 1, "OFT"),
    "no-tensors": (raw({}), 1, "holds no adapter layers"),
    "nan": (changed(lambda tensors: tensors[UP].fill(np.nan)), 7, ""),
    "inf": (changed(lambda tensors: tensors[DOWN].fill(np.inf)), 7, ""),
    "nan-alpha": (
        changed(lambda tensors: tensors.update({ALPHA: np.asarray(np.nan, "f4")})),
        7,
        "expected a finite alpha, found nan",
    ),
    "unknown-layer": (
        changed(
            lambda tensors: tensors.update({key.replace("to_q", "to_x"): tensors.pop(key) for key in (DOWN, UP, ALPHA)})
        ),
        1,
        "cannot add 'unknown-layer' (unlisted:kohya)",
    ),
}
"""`inspect` describes them, arithmetic refuses them: name -> (bytes, exit code, a part of the message)."""


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / f"{name}.safetensors"
    path.write_bytes(content)
    return path
