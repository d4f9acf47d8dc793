"""Image files, folders, shards and data sets for the tests of what reads them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def noise(seed: int, width: int = 40, height: int = 36) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def folder(path: Path, captions: Mapping[str, str]) -> Path:
    """A folder of different pictures with a caption in a `.txt` beside each."""
    for number, (name, caption) in enumerate(captions.items()):
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(noise(number)))
        file.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def metadata(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    (path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def shard(path: Path, files: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path
