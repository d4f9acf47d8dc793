"""Webdataset shards: tar files in which an image and its caption share a name.

The rule: shards are indexed once, when opened, and then read by offset, so that any sample can be had at any time.
"""

from __future__ import annotations

import json
import tarfile
from array import array
from collections.abc import Iterator
from glob import glob
from pathlib import Path, PurePosixPath

from lorahub.distill.data_folder import caption_of
from lorahub.distill.data_pictures import CAPTION_NAMES, SUFFIXES, Picture
from lorahub.errors import FileFormatError, NotFoundError, UsageError

_FIELDS = 6
"""Of a sample in the index: shard, image offset and size, caption offset and size, whether the caption is json."""


class Shards:
    """The samples of all tar files that `pattern` names: `{00..12}` and `*` are expanded."""

    def __init__(self, pattern: str, *, caption_column: str | None = None, prompt: str | None = None) -> None:
        """Raises NotFoundError for no shard or no image, FileFormatError for a damaged or compressed tar file, UsageError
        when a sample has no caption and there is no `prompt`."""
        self._paths = _expand(pattern)
        self._column, self._prompt = caption_column, prompt
        self._index = array("q")
        for number, path in enumerate(self._paths):
            for name, fields in _samples(path):
                if fields[3] == 0 and prompt is None:  # the caption's size
                    raise UsageError(f"{path}: {name} has no .txt or .json: add it, or give one `prompt`")
                self._index.extend((number, *fields))
        if not self._index:
            raise NotFoundError(f"no image ({', '.join(SUFFIXES)}) in {pattern}")

    def __len__(self) -> int:
        return len(self._index) // _FIELDS

    def __getitem__(self, index: int) -> Picture:
        shard, *places, is_json = self._index[index * _FIELDS : (index + 1) * _FIELDS]
        path, name = self._paths[shard], f"{self._paths[shard]} sample {index}"
        with path.open("rb") as file:
            file.seek(places[0])
            data = file.read(places[1])
            file.seek(places[2])
            text = file.read(places[3])
        if not text:
            return Picture(name, data, str(self._prompt))
        return Picture(name, data, self._parse(text, name) if is_json else text.decode("utf-8").strip())

    def _parse(self, text: bytes, name: str) -> str:
        try:
            return caption_of(json.loads(text), self._column)
        except (ValueError, KeyError, AttributeError):
            names = self._column or " or ".join(CAPTION_NAMES)
            raise FileFormatError(f"{name}: its json should be an object with {names}") from None


def _expand(pattern: str) -> list[Path]:
    if "://" in pattern or pattern.startswith("pipe:"):
        raise UsageError(f"shards are read from disk, {pattern} is remote: download them first (`hf download`)")
    try:
        from braceexpand import braceexpand
    except ImportError:
        raise UsageError("reading shards needs the package webdataset: pip install 'lorahub-toolkit[train]'") from None
    paths: list[Path] = []
    for each in braceexpand(pattern):
        found = [Path(name) for name in sorted(glob(each))]  # noqa: PTH207 (patterns may be absolute)
        if not found:
            raise NotFoundError(f"no such shard: {each}")
        paths += found
    return paths


def _samples(path: Path) -> Iterator[tuple[str, tuple[int, int, int, int, int]]]:
    """(name, image offset and size, caption offset and size, is json) of each image in one tar file."""
    name, found = "", dict[str, tuple[int, int]]()
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                base, _, kind = PurePosixPath(member.name).name.partition(".")
                whole = f"{PurePosixPath(member.name).parent}/{base}"
                if not member.isreg() or not base:
                    continue
                if whole != name:
                    yield from _sample(name, found)
                    name, found = whole, {}
                found[kind.lower()] = (member.offset_data, member.size)
            yield from _sample(name, found)
    except tarfile.TarError as error:
        raise FileFormatError(f"{path} is damaged or compressed ({error}): expected a plain tar file") from None


def _sample(name: str, found: dict[str, tuple[int, int]]) -> Iterator[tuple[str, tuple[int, int, int, int, int]]]:
    image = next((found[kind] for kind in found if f".{kind}" in SUFFIXES), None)
    if image is not None:
        caption = found.get("txt") or found.get("json") or (0, 0)
        yield name, (*image, *caption, int("txt" not in found))
