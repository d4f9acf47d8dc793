"""A folder of images, at any depth, with their captions.

The rule: `metadata.jsonl` is asked first, then the `.txt` beside the image, then the one prompt given for all.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from lorahub.distill.data_pictures import CAPTION_NAMES, SUFFIXES, Picture
from lorahub.errors import FileFormatError, NotFoundError, UsageError


class Folder:
    """The images below `folder`, in the order of their names."""

    def __init__(self, folder: Path, *, caption_column: str | None = None, prompt: str | None = None) -> None:
        """Raises NotFoundError for no folder, no image, or a listed image that is not there, UsageError for no caption."""
        if not folder.is_dir():
            raise NotFoundError(f"no such folder of images: {folder}")
        images, listed = _walk(folder, caption_column)
        missing = sorted(listed.keys() - set(images))
        if missing:
            raise NotFoundError(f"metadata.jsonl lists {missing[0]}, which is not there ({len(missing)} in all)")
        if not images:
            raise NotFoundError(f"no image ({', '.join(SUFFIXES)}) in {folder} or its folders")
        self._pictures = [(path, _caption(path, listed, prompt)) for path in images]

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Picture:
        path, caption = self._pictures[index]
        return Picture(str(path), path.read_bytes(), caption)


def _walk(folder: Path, column: str | None) -> tuple[list[Path], dict[Path, str]]:
    """All images in a fixed order, and the captions that `metadata.jsonl` files give, each for what lies below it."""
    images: list[Path] = []
    listed: dict[Path, str] = {}
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(place)
        images += [here / name for name in names if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")]
        if "metadata.jsonl" in names:
            listed |= _read_metadata(here / "metadata.jsonl", column)
    return sorted(images), listed


def _read_metadata(path: Path, column: str | None) -> dict[Path, str]:
    """Image -> caption, as Hugging Face's imagefolder spells it: an object a line with `file_name` and a caption."""
    captions = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            file, caption = row["file_name"], caption_of(row, column)
        except (json.JSONDecodeError, KeyError, TypeError):
            names = column or " or ".join(CAPTION_NAMES)
            raise FileFormatError(f"{path}, line {number}: expected an object with file_name and {names}") from None
        captions[path.parent / file] = caption
    return captions


def caption_of(row: dict[str, object], column: str | None) -> str:
    """The caption among named values. Raises KeyError when there is none."""
    for name in (column,) if column else CAPTION_NAMES:
        if isinstance(row.get(name), str):
            return str(row[name])
    raise KeyError(column or CAPTION_NAMES)


def _caption(path: Path, listed: dict[Path, str], prompt: str | None) -> str:
    if path in listed:
        return listed[path]
    beside = path.with_suffix(".txt")
    if beside.is_file():
        return beside.read_text(encoding="utf-8").strip()
    if prompt is None:
        raise UsageError(
            f"{path} has no caption: write {beside.name} or metadata.jsonl beside it, or give one `prompt`"
        )
    return prompt
