"""What an adapter on the Hub is, from the beginning of its file: some kilobytes instead of gigabytes. No tensor is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from huggingface_hub import HfApi

from lorahub import bases
from lorahub.bases.detect import Detection
from lorahub.errors import BaseMismatchError, FileFormatError
from lorahub.files.paths import PICKLE_SUFFIXES
from lorahub.formats.layout import parse, seen
from lorahub.hub.errors import translated
from lorahub.hub.repository import RemoteFile, Snapshot, download, peft_config


@dataclass(frozen=True)
class Heading:
    """The header of a remote file, understood."""

    format: str
    layers: int
    ranks: tuple[int, ...]
    detection: Detection
    metadata: Mapping[str, str]

    def expect_base(self, name: str, what: str) -> None:
        """Raises BaseMismatchError unless the layers fit this base."""
        if name not in self.detection.candidates and name != self.detection.base:
            found = self.detection.base or " or ".join(self.detection.candidates) or "no listed base"
            raise BaseMismatchError(f"{what} is for {found}, not for {name}: nothing was downloaded")


def read_heading(snapshot: Snapshot, file: RemoteFile) -> Heading:
    """What the file holds. Raises FileFormatError for what is no adapter, and what the Hub answers."""
    what = f"{snapshot.repo}:{file.path}"
    if not file.path.endswith(".safetensors"):
        kind = "a Python pickle, which can run code when read" if file.path.endswith(PICKLE_SUFFIXES) else "no adapter"
        raise FileFormatError(f"{what} is {kind}: only .safetensors files are pulled")
    with translated(what):
        header = HfApi().parse_safetensors_file_metadata(snapshot.repo, file.path, revision=snapshot.commit)
        shapes = {name: tuple(map(int, tensor.shape)) for name, tensor in header.tensors.items()}
        metadata = {str(key): str(value) for key, value in header.metadata.items()}
    try:
        layout = parse(shapes, metadata, _config(snapshot, file))
    except FileFormatError as error:
        raise FileFormatError(f"{what}: {error}") from None
    if not layout.modules and not layout.embeddings:
        raise FileFormatError(f"{what} holds no adapter layers that lorahub knows: nothing was downloaded")
    ranks = tuple(sorted({module.rank for module in layout.modules if module.rank}))
    return Heading(layout.format, len(layout.modules), ranks, bases.detect(seen(layout), metadata), metadata)


def _config(snapshot: Snapshot, file: RemoteFile) -> Mapping[str, object] | None:
    config = peft_config(snapshot, file)
    if config is None:
        return None
    try:
        content = json.loads(download(snapshot, config).read_bytes())
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise FileFormatError(f"{snapshot.repo}: {config.path} must hold a JSON object")
    return content
