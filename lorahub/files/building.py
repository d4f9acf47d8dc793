"""From named tensors to an adapter: the layout is parsed, the base found, every module decoded and placed.

The rule: every key of the input is accounted for. What is not understood is an error, never a silent drop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lorahub import bases
from lorahub.algebra.adapter import Adapter
from lorahub.algebra.dora import Magnitude
from lorahub.algebra.geometry import layer_gram
from lorahub.algebra.lowrank import Block, LowRank
from lorahub.algebra.recipe import Source
from lorahub.bases.model import Base, Span
from lorahub.errors import BaseMismatchError, FileFormatError, NotAdditiveError
from lorahub.files.reading import Content, check_finite
from lorahub.formats.decode import decode, decode_dora
from lorahub.formats.encode import COMPONENT_KEY, UNLISTED_DOTTED, UNLISTED_KOHYA
from lorahub.formats.kinds import NOT_ADDITIVE
from lorahub.formats.layout import Layout, Module, parse, seen
from lorahub.formats.rows import split

_NAMELESS = ("", "base_model.model")
"""Prefixes that do not tell the component."""
_SAME = 1e-5
"""Relative distance up to which a layer that a file gives twice counts as given the same both times."""

Builder = Callable[[Content, str | Base | None], Adapter]
"""See `build`."""


class AmbiguousBaseError(BaseMismatchError):
    """An adapter fits several bases equally well; `candidates` are their names."""

    def __init__(self, name: str, candidates: tuple[str, ...]) -> None:
        super().__init__(f"{name} fits several bases ({', '.join(candidates)}): say which with --base")
        self.candidates = candidates


def build(content: Content, base: str | Base | None) -> Adapter:
    """The adapter that the tensors spell. `base` overrides detection.

    Raises FileFormatError for keys that nobody understands and for a layer given twice, NotAdditiveError for DoRA and
    its like, BaseMismatchError for layers that the base does not have, AmbiguousBaseError when several bases fit.
    """
    return _build(content, base, refused=NOT_ADDITIVE)[0]


def build_with_magnitudes(content: Content, base: str | Base | None) -> tuple[Adapter, dict[str, Magnitude]]:
    """Like `build`, but a DoRA is read: its ΔW as an adapter, which alone says nothing, and the lengths by layer.

    Raises what `build` raises; NotAdditiveError for lengths of input channels of a layer that the base has split.
    """
    return _build(content, base, refused={kind: why for kind, why in NOT_ADDITIVE.items() if kind != "dora"})


def _build(
    content: Content, base: str | Base | None, *, refused: Mapping[str, str]
) -> tuple[Adapter, dict[str, Magnitude]]:
    shapes = {name: tuple(tensor.shape) for name, tensor in content.tensors.items()}
    layout = parse(shapes, content.metadata, content.config)
    if layout.unknown:
        raise FileFormatError(
            f"{content.name}: {len(layout.unknown)} keys are not understood, such as {layout.unknown[0]!r}"
        )
    if not layout.modules and not layout.embeddings:
        raise FileFormatError(f"{content.name} holds no adapter layers")
    strange = next((module for module in layout.modules if module.kind in refused), None)
    if strange:
        raise NotAdditiveError(f"{content.name}: {refused[strange.kind]} (layer {strange.name})")
    found = base if isinstance(base, Base) else find_base(layout, content.metadata, base, content.name)
    place = _Placer(found, content)
    for module in layout.modules:
        place.add(module)
    adapter = Adapter(
        found.name if found else place.unlisted_space(layout),
        place.layers,
        place.offsets,
        _embeddings(layout, content),
        Source(content.name, content.data_sha256, dict(content.metadata)),
    )
    return adapter, place.magnitudes


def find_base(layout: Layout, metadata: Mapping[str, str], wanted: str | None, name: str) -> Base | None:
    """The base given by name or detected; None when the layers fit no listed base."""
    if wanted is not None:
        return None if wanted.startswith("unlisted") else bases.get(wanted)
    detection = bases.detect(seen(layout), metadata)
    if detection.base is not None:
        return bases.get(detection.base)
    if detection.candidates:
        raise AmbiguousBaseError(name, detection.candidates)
    return None


def _embeddings(layout: Layout, content: Content) -> dict[str, Tensor]:
    """Token -> [vectors, dim]; tokens that have one embedding per text encoder are named `token/clip_l`."""
    result: dict[str, Tensor] = {}
    for token, keys in layout.embeddings.items():
        for key in keys:
            name = token if len(keys) == 1 else f"{token}/{key.rpartition('.')[2]}"
            check_finite(key, content.tensors[key])
            result[name] = content.tensors[key].reshape(-1, content.tensors[key].shape[-1])
    return result


class _Placer:
    """Collects decoded modules under canonical names; a layer that comes twice must come equal."""

    def __init__(self, base: Base | None, content: Content) -> None:
        self.base = base
        self.content = content
        self.layers: dict[str, LowRank] = {}
        self.offsets: dict[str, Tensor] = {}
        self.magnitudes: dict[str, Magnitude] = {}

    def add(self, module: Module) -> None:
        spans = self._spans(module)
        if module.kind == "dora":
            decoded, lengths, of_rows = decode_dora(module, self.content.tensors)
            self._put_lengths(module, spans, lengths, of_rows)
        else:
            decoded = decode(module, self.content.tensors)
        blocks: dict[str, list[Block]] = {}
        for up, down, scale in decoded.factors:
            for layer, rows in self._split(module, spans, up):
                blocks.setdefault(layer, []).append(Block(rows, down, scale))
        for layer, parts in blocks.items():
            self._put(layer, LowRank(self._shape(layer, parts[0], decoded.kernel), tuple(b for b in parts if b.scale)))
        for kind, offset in (("weight", decoded.weight_offset), ("bias", decoded.bias_offset)):
            if offset is not None:
                for layer, rows in self._split(module, spans, offset.float()):
                    self._put_offset(f"{layer}.{kind}", rows)

    def _split(self, module: Module, spans: tuple[Span, ...], tensor: Tensor) -> list[tuple[str, Tensor]]:
        expected = sum(span.stop - span.start for span in spans)
        if self.base is not None and tensor.shape[0] != expected:
            raise BaseMismatchError(
                f"{self.content.name}: {self._spelled(module)} has {expected} rows in {self.base.name}, "
                f"the file's has {tensor.shape[0]}"
            )
        return split(spans, tensor, {span.layer: self._rows(span, tensor) for span in spans})

    def _spans(self, module: Module) -> tuple[Span, ...]:
        if self.base is None:
            return (Span(self._spelled(module), 0, module.out or 0),)
        spans = self.base.find(self._prefix(module), module.name)
        if spans is None and module.prefix in _NAMELESS:  # PEFT does not say which component it is
            spans = self.base.find("", module.name)
        if spans is None:
            raise BaseMismatchError(f"{self.content.name}: {self.base.name} has no layer {self._spelled(module)!r}")
        return spans

    def _prefix(self, module: Module) -> str:
        """The file's prefix; for the names of a PEFT folder, the component that lorahub wrote into its metadata."""
        named = self.content.metadata.get(COMPONENT_KEY) if module.prefix in _NAMELESS else None
        return module.prefix if named is None else named

    def _spelled(self, module: Module) -> str:
        prefix = self._prefix(module)
        joint = "_" if _underscored(module) else "."
        return f"{prefix}{joint}{module.name}" if prefix else module.name

    def _rows(self, span: Span, tensor: Tensor) -> int:
        if self.base is None:
            return tensor.shape[0]
        shape = self.base.shape(span.layer)
        return shape[0] if shape else span.stop  # a normalisation layer: its span is all of it

    def _shape(self, layer: str, block: Block, kernel: tuple[int, ...]) -> tuple[int, ...]:
        """Weight shape of the layer: the base's when known (a 1x1 kernel may be missing in the file, or be too many)."""
        came = (block.up.shape[0], block.down.shape[1])
        if self.base is None:
            return (came[0], came[1] // math.prod(kernel), *kernel) if kernel else came
        shape = self.base.shape(layer) or came
        if (shape[0], math.prod(shape[1:])) != came:
            raise BaseMismatchError(
                f"{self.content.name}: {layer} is {list(shape)} in {self.base.name}, the file's is {list(came)}"
            )
        return shape

    def _put(self, layer: str, value: LowRank) -> None:
        if layer in self.layers and not _equal(self.layers[layer], value):
            raise FileFormatError(f"{self.content.name}: {layer} is given twice, and differently")
        self.layers.setdefault(layer, value)

    def _put_lengths(self, module: Module, spans: tuple[Span, ...], lengths: Tensor, of_rows: bool) -> None:
        layers = {span.layer for span in spans}
        if not of_rows and len(layers) > 1:
            raise NotAdditiveError(
                f"{self.content.name}: the DoRA of {self._spelled(module)} has lengths of input channels, "
                f"which run over all of {', '.join(sorted(layers))} and cannot be parted"
            )
        for layer, values in self._split(module, spans, lengths) if of_rows else [(spans[0].layer, lengths)]:
            if layer in self.magnitudes:
                raise FileFormatError(f"{self.content.name}: the DoRA of {layer} is given twice")
            self.magnitudes[layer] = Magnitude(values, of_rows)

    def _put_offset(self, parameter: str, value: Tensor) -> None:
        check_finite(parameter, value)
        if parameter in self.offsets and not torch.equal(self.offsets[parameter], value):
            raise FileFormatError(f"{self.content.name}: {parameter} is given twice, and differently")
        self.offsets[parameter] = value

    def unlisted_space(self, layout: Layout) -> str:
        """Arithmetic without a known base works within one spelling: underscored or dotted names."""
        kinds = {UNLISTED_KOHYA if _underscored(module) else UNLISTED_DOTTED for module in layout.modules}
        if len(kinds) > 1:
            raise BaseMismatchError(
                f"{self.content.name} mixes kohya and dotted names, and its base is not listed "
                f"(listed are {', '.join(bases.names())})"
            )
        return kinds.pop() if kinds else UNLISTED_DOTTED


def _underscored(module: Module) -> bool:
    return module.prefix.startswith(("lora_", "lycoris"))


def _equal(one: LowRank, other: LowRank) -> bool:
    """Whether two spellings of a layer (a fused qkv beside q, k and v) say the same."""
    apart = math.sqrt(max(float(layer_gram([one - other])), 0.0))
    return apart <= _SAME * math.sqrt(max(float(layer_gram([one])), 0.0))


def from_state_dict(
    tensors: Mapping[str, Tensor],
    *,
    name: str = "state dict",
    base: str | Base | None = None,
    metadata: Mapping[str, str] | None = None,
    config: Mapping[str, object] | None = None,
    data_sha256: str = "",
) -> Adapter:
    """The adapter that a dictionary of tensors spells, in any format; `config` as in a PEFT folder."""
    return build(Content(name, tensors, metadata or {}, config, data_sha256), base)
