"""Load an adapter from a path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from lorahub import header
from lorahub.algebra.adapter import Adapter
from lorahub.algebra.recipe import Source
from lorahub.bases.model import Base
from lorahub.errors import FileFormatError
from lorahub.files.building import AmbiguousBaseError, Builder, build
from lorahub.files.paths import display_name, find_weights
from lorahub.files.reading import read

_Name = TypeVar("_Name", str, Path)


def load_path(
    path: str | Path,
    *,
    base: str | Base | None = None,
    allow_pickle: bool = False,
    hashed: bool = True,
    build: Builder = build,
) -> Adapter:
    """The adapter in a file or folder, whatever its format.

    base: the base model, when detection should not decide. hashed: see `reading.read`. build: makes the adapter of one
    file. Raises NotFoundError, FileFormatError (damaged, unknown keys), NotAdditiveError (DoRA and its like),
    BaseMismatchError (ambiguous base, layers that do not fit).
    """
    files = find_weights(Path(path))
    with header.collector_paused():
        parts = load_together(
            files, lambda file, wanted: build(read(file, allow_pickle=allow_pickle, hashed=hashed), wanted or base)
        )
    if len(parts) == 1:
        return parts[0]
    whole = parts[0]
    for part in parts[1:]:
        if whole.layers.keys() & part.layers.keys():
            raise FileFormatError(f"{path}: two of its component folders hold the same layers")
        whole = whole + part
    hashes = "+".join(part.recipe.data_sha256 for part in parts if isinstance(part.recipe, Source)) if hashed else ""
    name = display_name(Path(path) / "adapter_model.safetensors")
    metadata = _shared([part.recipe.metadata for part in parts if isinstance(part.recipe, Source)])
    return Adapter(whole.base, whole.layers, whole.offsets, whole.embeddings, Source(name, hashes, metadata))


def load_together(names: Sequence[_Name], load_one: Callable[[_Name, str | None], Adapter]) -> list[Adapter]:
    """Load each with `load_one(name, base)`; those that fit several bases take the one base that fits all.

    Raises AmbiguousBaseError when not exactly one does, and what `load_one` raises.
    """
    loaded: dict[_Name, Adapter] = {}
    ambiguous: dict[_Name, AmbiguousBaseError] = {}
    for name in names:
        try:
            loaded[name] = load_one(name, None)
        except AmbiguousBaseError as doubt:
            ambiguous[name] = doubt
    if ambiguous:
        known = [{adapter.base} for adapter in loaded.values()]
        fitting = set.intersection(*known, *(set(doubt.candidates) for doubt in ambiguous.values()))
        if len(fitting) != 1:
            raise next(iter(ambiguous.values()))
        loaded |= {name: load_one(name, *fitting) for name in ambiguous}
    return [loaded[name] for name in names]


def _shared(metadata: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The entries that all have alike."""
    first, *others = metadata
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
