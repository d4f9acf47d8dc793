"""Load an adapter from a path."""

from __future__ import annotations

from pathlib import Path

from lorahub.algebra.adapter import Adapter
from lorahub.algebra.recipe import Source
from lorahub.bases.model import Base
from lorahub.errors import FileFormatError
from lorahub.files.building import build
from lorahub.files.paths import display_name, find_weights
from lorahub.files.reading import read


def load_path(path: str | Path, *, base: str | Base | None = None, allow_pickle: bool = False) -> Adapter:
    """The adapter in a file or folder, whatever its format.

    base: the base model, when detection should not decide.
    Raises NotFoundError, FileFormatError (damaged, unknown keys), NotAdditiveError (DoRA and its like),
    BaseMismatchError (ambiguous base, layers that do not fit).
    """
    files = find_weights(Path(path))
    parts = [build(read(file, allow_pickle=allow_pickle), base) for file in files]
    if len(parts) == 1:
        return parts[0]
    whole = parts[0]
    for part in parts[1:]:
        if whole.layers.keys() & part.layers.keys():
            raise FileFormatError(f"{path}: two of its component folders hold the same layers")
        whole = whole + part
    hashes = "+".join(part.recipe.data_sha256 for part in parts if isinstance(part.recipe, Source))
    source = Source(display_name(Path(path) / "adapter_model.safetensors"), hashes, {})
    return Adapter(whole.base, whole.layers, whole.offsets, whole.embeddings, source)
