"""The parents that a recipe names, adapters and base models, wherever they lie now.

The rule: they are found by the hash of their weights, and taken only if the bytes that were read have it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorahub import header
from lorahub.algebra.adapter import Adapter
from lorahub.algebra.recipe import Source
from lorahub.checkpoints import Checkpoint, open_checkpoint
from lorahub.errors import FileFormatError, LorahubError, NotFoundError, VerificationError
from lorahub.files.inspecting import PROVENANCE_KEY
from lorahub.files.loading import load_path
from lorahub.workspace.core import Workspace
from lorahub.workspace.errors import translated

Json = Mapping[str, Any]


class Sources:
    """Finds what a recipe was made from: among the files given, then in the registry. `used`: name -> hash, in order.

    given: files, and folders to look through for them.
    """

    def __init__(self, workspace: Workspace, document: Json, given: Sequence[Path]) -> None:
        self._workspace = workspace
        self._base = str(document["base"]) if document.get("base") else None
        self._given = tuple(given)
        self._files: dict[str, list[Path]] = {}
        for sha256, path in _hashed(given):
            self._files.setdefault(sha256, []).append(path)
        self._metadata = {
            str(parent.get("data_sha256")): _metadata(parent)
            for parent in document.get("parents") or ()
            if isinstance(parent, Mapping)
        }
        self.used: dict[str, str] = {}
        self._loaded: dict[tuple[str, str], Adapter] = {}
        """Kept, because factors that a recipe names twice are gathered in a sum only where they are the same in memory."""

    def __call__(self, name: str, data_sha256: str) -> Adapter:
        if not data_sha256:
            raise NotFoundError(f"the parent {name!r} was made in memory: there is no file to find it by")
        if (name, data_sha256) not in self._loaded:
            self._loaded[name, data_sha256] = self._load(name, data_sha256)
        return self._loaded[name, data_sha256]

    def checkpoint(self, name: str, data_sha256: str) -> Checkpoint:
        """The base model, a file or a folder of files, whose weights have this hash.

        Raises NotFoundError when it is not among what was given, VerificationError when what has its name is another.
        """
        files = self._files.get(data_sha256.partition("+")[0], ())
        places = [path for file in files for path in (*reversed(file.parents[:2]), file)]  # pipeline/unet/weights
        # A pipeline of one model, its folder and its file have one hash, and name layers differently.
        for path in sorted(places, key=lambda path: name not in (path.name, path.stem)):
            found = _opened(path)
            if found is not None and found.data_sha256 == data_sha256:
                self.used[name] = data_sha256
                return found
        for place in self._given:
            for path in (place, place / name, place / f"{name}.safetensors"):
                found = _opened(path)
                if found is not None and found.name == name:
                    raise VerificationError(
                        f"the checkpoint {name!r} was changed: {path} does not hold the weights that were recorded "
                        f"(data sha256 {data_sha256[:12]})"
                    )
        raise NotFoundError(
            f"the checkpoint {name!r} (data sha256 {data_sha256[:12]}) is missing: say where it is with --parent"
        )

    def _load(self, name: str, data_sha256: str) -> Adapter:
        parts = [self._part(name, sha256) for sha256 in data_sha256.split("+")]
        self.used[name] = data_sha256
        whole = sum(parts[1:], start=parts[0])
        source = Source(name, data_sha256, self._metadata.get(data_sha256, {}))
        return Adapter(whole.base, whole.layers, whole.offsets, whole.embeddings, source)

    def _part(self, name: str, data_sha256: str) -> Adapter:
        tried = []
        for path in self._places(data_sha256):
            tried.append(str(path))
            adapter = load_path(path, base=self._base)
            if isinstance(adapter.recipe, Source) and adapter.recipe.data_sha256 == data_sha256:
                return replace(adapter, recipe=Source(name, data_sha256))
        if tried:
            raise VerificationError(
                f"the parent {name!r} was changed: {tried[0]} no longer has data {data_sha256[:12]}"
            )
        raise NotFoundError(
            f"the parent {name!r} (data sha256 {data_sha256[:12]}) is missing: add it to the registry, "
            "or say where it is with --parent"
        )

    def _places(self, data_sha256: str) -> Iterable[Path]:
        yield from self._files.get(data_sha256, ())[:1]
        with translated():
            known = self._workspace.registry.find(data_sha256=data_sha256)
        for record in known:
            try:
                yield self._workspace.path(record)
            except NotFoundError:
                continue
            if record.stored:  # what lies in the user's folder may have been replaced
                with translated():
                    yield self._workspace.registry.blobs.path(record.file_sha256)


def _hashed(given: Sequence[Path]) -> Iterable[tuple[str, Path]]:
    """(sha256 of the data, path) of every file given, and of every readable one under the folders given."""
    for path in given:
        if not path.is_dir():
            yield header.data_sha256(path, header.read(path)), path
        for inside in sorted(path.rglob("*.safetensors")):
            with suppress(FileFormatError):
                yield header.data_sha256(inside, header.read(inside)), inside


def _opened(path: Path) -> Checkpoint | None:
    """The checkpoint at a path, None where there is none."""
    try:
        return open_checkpoint(path)
    except LorahubError:
        return None


def _metadata(parent: Json) -> dict[str, str]:
    """The parent's metadata as far as a child records it."""
    kept = {str(key): str(value) for key, value in (parent.get("metadata") or {}).items()}
    told = parent.get("provenance")
    if told is not None:
        kept[PROVENANCE_KEY] = told if isinstance(told, str) else json.dumps(told, ensure_ascii=False)
    return kept
