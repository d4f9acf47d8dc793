"""From a path to a checkpoint: the base is detected, and every tensor of every header is placed.

The rule: every key ends up in exactly one place, a layer, a vector, or the others; what does not fit the base is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from lorahub import bases, header
from lorahub.bases.detect import Detection, Seen
from lorahub.bases.model import Base, Span
from lorahub.checkpoints import names
from lorahub.checkpoints.checkpoint import DTYPES, Checkpoint, Rows, Stored
from lorahub.checkpoints.finding import find
from lorahub.errors import BaseMismatchError, FileFormatError
from lorahub.formats import keys
from lorahub.formats.encode import UNLISTED_DOTTED
from lorahub.header import Header, TensorInfo

_SCALES = (".scale_weight", ".weight_scale", "scaled_fp8")
"""Keys beside weights that mean something only multiplied by these."""

Named = Mapping[tuple[Path, str], names.Spelled]


def open_checkpoint(path: str | Path, *, base: str | Base | None = None, variant: str | None = None) -> Checkpoint:
    """The base model at `path`: a .safetensors file, a diffusers pipeline folder, or a folder of one model.

    base: the base model, when detection should not decide. variant: which of several sets of a folder to take
    (`fp16` for `model.fp16.safetensors`, "" for the plain one); without it the plain one where there is one.
    Raises NotFoundError, FileFormatError (damaged, a pickle, quantised, an adapter), BaseMismatchError (ambiguous).
    """
    found = find(Path(path), variant)
    headers = {file: header.read(file) for file in found.files}
    named = {
        (file, key): spelled
        for file, described in headers.items()
        for key in described.tensors
        if (spelled := names.read(key, found.files[file])) is not None
    }
    if any(spelled.prefix for spelled in named.values()):  # then what has none is no part of it: a VAE, averages
        named = {where: spelled for where, spelled in named.items() if spelled.prefix}
    _refuse(Path(path), headers)
    described, detection = _base(Path(path), headers, named, base)
    place = _Placer(described)
    for (file, key), spelled in named.items():
        place.add(file, key, headers[file].tensors[key], spelled)
    if not place.layers:
        raise FileFormatError(f"{path} holds no layers that an adapter could touch")
    return Checkpoint(
        Path(path),
        described.name if described else UNLISTED_DOTTED,
        described,
        headers,
        _complete(place.layers, Path(path)),
        _complete(place.vectors, Path(path)),
        tuple((file, key) for file in headers for key in headers[file].tensors if (file, key) not in place.placed),
        detection.evidence if detection else (),
        (*found.notes, *place.notes()),
    )


def _refuse(path: Path, headers: Mapping[Path, Header]) -> None:
    for described in headers.values():
        for key in described.tensors:
            if key.endswith(_SCALES):
                raise FileFormatError(f"{path} holds scaled weights ({key}): expected plain ones, convert it first")
            read = keys.read(key) if "lora" in key or "hada" in key or "lokr" in key else None
            if read is not None and read.role != "alpha":
                raise FileFormatError(f"{path} is an adapter ({key}): expected a base model")


def _base(
    path: Path, headers: Mapping[Path, Header], named: Named, wanted: str | Base | None
) -> tuple[Base | None, Detection | None]:
    if isinstance(wanted, Base):
        return wanted, None
    if wanted is not None:
        return None if wanted.startswith("unlisted") else bases.get(wanted), None
    seen = [layer for (file, key), spelled in named.items() for layer in _seen(headers[file].tensors[key], spelled)]
    # A denoiser tells best: some text encoders (Qwen's, T5 of Wan) are in no table, because no adapter touches them.
    seen = [layer for layer in seen if not layer.prefix.startswith("text_encoder")] or seen
    metadata = {key: value for described in headers.values() for key, value in described.metadata.items()}
    detection = bases.detect(seen, metadata)
    if detection.base is None and detection.candidates:
        raise BaseMismatchError(f"{path} fits several bases ({', '.join(detection.candidates)}): say which")
    return (bases.get(detection.base) if detection.base else None), detection


def _seen(info: TensorInfo, spelled: names.Spelled) -> Iterator[Seen]:
    if spelled.kind == "weight" and len(info.shape) > 1:
        rows, *rest = _turned(info, spelled)
        for module in spelled.modules:
            yield Seen(spelled.prefix, module, rows // len(spelled.modules), math.prod(rest), len(info.shape))


def _turned(info: TensorInfo, spelled: names.Spelled) -> tuple[int, ...]:
    return info.shape[::-1] if spelled.transposed else info.shape


class _Placer:
    """Collects where the parameters of the base lie."""

    def __init__(self, base: Base | None) -> None:
        self.base = base
        self.layers: dict[str, Stored] = {}
        self.vectors: dict[str, Stored] = {}
        self.placed: set[tuple[Path, str]] = set()
        self._strange: list[str] = []
        self._misshapen: list[str] = []

    def add(self, file: Path, key: str, info: TensorInfo, spelled: names.Spelled) -> None:
        shape = _turned(info, spelled)
        if not shape or (spelled.kind == "bias" and len(shape) > 1):
            return
        spans = self._spans(spelled, shape[0])
        if not spans:
            self._strange.append(key)
            return
        lengths = {span.layer: self._shape(span.layer, shape, spelled, spans) for span in spans}
        rows = sum(span.stop - span.start for span in spans)
        columns = {math.prod(length[1:]) for length in lengths.values()}
        if rows != shape[0] or columns != {math.prod(shape[1:])}:
            self._misshapen.append(f"{key} {list(info.shape)}")
            return
        if info.dtype not in DTYPES or not DTYPES[info.dtype].is_floating_point:
            raise FileFormatError(f"{file}: {key} is {info.dtype}, a quantised weight: expected floating point")
        at = 0
        for span in spans:
            self._put(span, lengths[span.layer], info.dtype, spelled.kind, Rows(
                span.start, span.stop, file, key, at, spelled.transposed
            ))  # fmt: skip
            at += span.stop - span.start
        self.placed.add((file, key))

    def _spans(self, spelled: names.Spelled, rows: int) -> tuple[Span, ...]:
        if self.base is None:
            each = rows // len(spelled.modules)
            start = f"{spelled.prefix}." if spelled.prefix else ""
            return tuple(Span(start + module, 0, each) for module in spelled.modules)
        found = [self.base.find(spelled.prefix, module) for module in spelled.modules]
        return tuple(span for spans in found for span in spans or ())

    def _shape(
        self, layer: str, shape: tuple[int, ...], spelled: names.Spelled, spans: tuple[Span, ...]
    ) -> tuple[int, ...]:
        """The shape of a parameter in the base; of an unlisted base, as it came."""
        if self.base is None:
            return (shape[0] // len(spelled.modules), *shape[1:])
        known = self.base.shape(layer)
        if len(shape) == 1:
            return (
                (max(span.stop for span in spans if span.layer == layer),)
                if spelled.kind == "bias" or not known
                else known
            )
        return known or (0,)

    def _put(self, span: Span, shape: tuple[int, ...], dtype: str, kind: str, rows: Rows) -> None:
        matrix = len(shape) > 1
        home, name = (self.layers, span.layer) if matrix else (self.vectors, f"{span.layer}.{kind}")
        before = home[name].rows if name in home else ()
        if any(other.start < rows.stop and rows.start < other.stop for other in before):
            raise FileFormatError(f"{rows.file} gives {name} twice, as {before[0].key} and as {rows.key}")
        home[name] = Stored(shape, dtype, (*before, rows), matrix and self._is_embedding(span.layer))

    def _is_embedding(self, layer: str) -> bool:
        component, _, module = layer.partition(".")
        if self.base is None:
            return names.is_embedding(layer)
        return module in self.base.components[component].embeddings

    def notes(self) -> Iterator[str]:
        base = self.base.name if self.base else ""
        if self._misshapen:
            yield f"{len(self._misshapen)} tensors have other sizes than in {base}, such as {self._misshapen[0]}"
        if self._strange:
            yield f"{len(self._strange)} tensors are of no layer of {base}, such as {self._strange[0]}"


def _complete(found: Mapping[str, Stored], path: Path) -> Mapping[str, Stored]:
    for name, stored in found.items():
        rows = sum(piece.stop - piece.start for piece in stored.rows)
        if rows != stored.shape[0]:
            raise FileFormatError(f"{path} has {rows} of the {stored.shape[0]} rows of {name}: the file is incomplete")
    return found
