"""What a LoRA file holds, read from its header alone: modules, their kinds, ranks and sizes.

Every key of the file ends up in exactly one place: a part of a module, a textual-inversion embedding, or `unknown`.
Standard library only: `lorahub inspect` depends on it and must not import torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from types import MappingProxyType

from lorahub.bases.detect import Seen
from lorahub.errors import FileFormatError
from lorahub.formats import cloneofsimo, keys, kinds
from lorahub.formats.peft_config import Configs, PeftConfig


@dataclass(frozen=True)
class Format:
    """One spelling of adapters on disk."""

    description: str
    readable: bool = True
    writable: bool = False


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "kohya": Format("sd-scripts: lora_unet_down_blocks_0_... .lora_down.weight, alpha tensors", writable=True),
        "lycoris": Format("LyCORIS: kohya prefixes with LoHa, LoKr, Tucker, full and norm modules"),
        "diffusers": Format("diffusers: unet.down_blocks.0... .lora_A.weight or .lora.down.weight", writable=True),
        "diffusers-old": Format("diffusers attention processors: ...attn1.processor.to_q_lora.down.weight"),
        "peft": Format("PEFT: base_model.model... .lora_A.weight with an adapter_config.json", writable=True),
        "comfy": Format("ComfyUI and DiT trainers: diffusion_model... .lora_A.weight or .lora_down.weight"),
        "onetrainer": Format("OneTrainer: lora_transformer_transformer_blocks_0_... .lora_down.weight"),
        "omi": Format("Open Model Initiative: transformer.double_blocks.0..., clip_l..., t5... .lora_down.weight"),
        "xlabs": Format("XLabs Flux: double_blocks.0.processor.qkv_lora1.down.weight"),
        "cloneofsimo": Format("cloneofsimo/lora, SD 1.5: unet:0:up, text_encoder:0:down, <token> embeddings"),
        "unknown": Format("no adapter was recognised", readable=False),
    }
)

_SPELLINGS: Mapping[tuple[str, str], str] = {
    ("kohya", "flat"): "kohya",
    ("kohya", "peft"): "peft",
    ("kohya", "component"): "omi",
    ("kohya", "comfy"): "comfy",
    ("kohya", "bare"): "comfy",
    ("peft", "flat"): "kohya",
    ("peft", "peft"): "peft",
    ("peft", "component"): "diffusers",
    ("peft", "comfy"): "comfy",
    ("peft", "bare"): "peft",
    ("old", "comfy"): "xlabs",
}
"""(style of the suffix, site of the prefix) -> format; styles that are not here are a format's own name."""
_STYLES: Mapping[str, str] = {"diffusers": "diffusers", "old": "diffusers-old", "cloneofsimo": "cloneofsimo"}
_LYCORIS_KINDS = frozenset({"tucker", "loha", "lokr", "full", "norm", "oft", "boft", "glora", "ia3"})
_SCALED = frozenset({"lora", "tucker", "loha", "lokr", "embedding", "dora"})
"""Kinds whose ΔW carries a scale of alpha over rank."""


@dataclass(frozen=True)
class Module:
    """What the file stores for one module of the base, under the name the file gives it."""

    prefix: str
    name: str
    kind: str
    parts: Mapping[str, str]
    """role -> key"""
    rank: int
    """LoRA rank; of LoHa that of either factor, of LoKr the inner dimension, 0 when both its factors are whole."""
    out: int | None
    inn: int | None
    """Rows and flattened columns of ΔW; None where the shapes do not tell."""
    kernel: tuple[int, ...]
    alpha: float | None
    """From the configuration or metadata; a tensor with the role "alpha" outranks it. Of a LoKr with rank 0, which has
    no rank to divide by, this is the scale itself."""
    rslora: bool

    @property
    def scale(self) -> float | None:
        """What the product of the factors is multiplied by; None while an alpha tensor of the file decides it."""
        if "alpha" in self.parts:
            return None
        if self.alpha is None:
            return 1.0
        return self.alpha / (sqrt(self.rank) if self.rslora else self.rank or 1)

    def scale_with(self, alpha: float) -> float:
        """The scale when the file's alpha tensor holds `alpha`: rank-stabilised trainers bake their root into it."""
        return alpha / self.rank if self.rank else 1.0


@dataclass(frozen=True)
class Layout:
    """Everything a file holds, as its header tells it."""

    format: str
    modules: tuple[Module, ...]
    embeddings: Mapping[str, tuple[str, ...]]
    """token or bundle name -> keys"""
    unknown: tuple[str, ...]
    notes: tuple[str, ...]


def parse(
    shapes: Mapping[str, tuple[int, ...]],
    metadata: Mapping[str, str] = MappingProxyType({}),
    config: Mapping[str, object] | None = None,
) -> Layout:
    """The layout of a file with these tensors; `config` is the adapter_config.json beside it, if any.

    Raises FileFormatError when the file contradicts itself: missing halves, ranks or shapes that do not fit.
    """
    configs = Configs(config, metadata)
    groups, embeddings, unread = _sorted_out(shapes, metadata)
    unknown = [key for key in unread if not _adopt(key, shapes[key], groups, configs)]
    modules: list[tuple[Module, str]] = []
    for group in groups.values():
        module = group.module(configs.of(group.first.place.prefix))
        if module is None:
            unknown.extend(part.key for part in group.parts.values())
        else:
            modules.append((module, _spelling(group.style, group.first.place, module)))
    spellings = Counter(spelling for _, spelling in modules)
    layout = Layout(
        format=max(spellings, key=lambda name: (spellings[name], name), default="unknown"),
        modules=tuple(module for module, _ in modules),
        embeddings={token: tuple(found) for token, found in embeddings.items()},
        unknown=tuple(unknown),
        notes=tuple(_notes(modules, spellings, configs)),
    )
    _account(layout, shapes)
    return layout


def _sorted_out(
    shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]
) -> tuple[dict[_Id, _Group], dict[str, list[str]], list[str]]:
    """The keys by module, the keys by textual-inversion token, and the keys in no table."""
    groups: dict[_Id, _Group] = {}
    embeddings: dict[str, list[str]] = {}
    unread: list[str] = []
    numbered = cloneofsimo.place(shapes, metadata)
    for name, shape in shapes.items():
        key = numbered[name] if numbered else keys.read(name)
        token = name if metadata.get(name) == cloneofsimo.EMBEDDING else keys.bundled_token(name)
        if token is not None:
            embeddings.setdefault(token, []).append(name)
        elif key is None:
            unread.append(name)
        else:
            groups.setdefault((key.place.prefix, key.place.name, False), _Group(key)).add(key, name, shape)
    return groups, embeddings, unread


def seen(layout: Layout) -> list[Seen]:
    """The modules as base detection wants them."""
    return [Seen(module.prefix, module.name, module.out, module.inn, _dims(module)) for module in layout.modules]


def _dims(module: Module) -> int | None:
    """Dimensions of the weight; a matrix of LoHa or LoKr may be a flattened convolution, and tells nothing."""
    if module.kernel or "down" in module.parts or "embedding_a" in module.parts or module.kind == "full":
        return 2 + len(module.kernel)
    return None


_Id = tuple[str, str, bool]
"""prefix, module name, and whether the tensors are trained copies of the base's own"""


class _Group:
    """The tensors found so far for one module."""

    def __init__(self, first: keys.Key) -> None:
        self.first = first
        self.parts: dict[str, kinds.Part] = {}
        self.style = ""

    def add(self, key: keys.Key, name: str, shape: kinds.Shape) -> None:
        other = self.parts.get(key.role)
        if other is not None:
            raise FileFormatError(f"{name}: expected one {key.role!r} tensor of its module, found {other.key} as well")
        self.parts[key.role] = kinds.Part(name, tuple(shape))
        self.style = self.style or key.style

    def module(self, config: PeftConfig | None) -> Module | None:
        place = self.first.place
        found = kinds.classify(place.prefix, place.name, self.parts)
        if found is None:
            return None
        kind, size = found
        alpha, rslora = None, False
        if config is not None and kind in _SCALED:
            if "alpha" not in self.parts:
                alpha, rslora = _configured_alpha(config, place, size), config.rslora
            kind = config.kind or kind
        parts = {role: part.key for role, part in self.parts.items()}
        return Module(place.prefix, place.name, kind, parts, *size, alpha, rslora)


def _configured_alpha(config: PeftConfig, place: keys.Place, size: kinds.Size) -> float:
    rank = config.rank_of(place.path)
    if size.rank and rank not in (None, size.rank):
        raise FileFormatError(
            f"{place.prefix}.{place.name}: expected rank {rank} ({config.source}), found {size.rank} in the tensors"
        )
    # PEFT scales a LoKr of whole factors by alpha / r all the same, LyCORIS does not
    return config.alpha_of(place.path) / (1 if size.rank else rank or kinds.DEFAULT_RANK)


def _adopt(key: str, shape: kinds.Shape, groups: dict[_Id, _Group], configs: Configs) -> bool:
    """Take in a plain `<module>.weight` or `.bias`: an IA3 vector, or a trained copy named by the configuration."""
    stem, _, field = key.rpartition(".")
    if field not in ("weight", "bias") or not stem:
        return False
    place = keys.locate(stem)
    group = groups.get((place.prefix, place.name, False))
    if group is not None and "on_input" in group.parts and field == "weight":
        group.add(keys.Key(place, field, ""), key, shape)
        return True
    config = configs.of(place.prefix)
    if config is None or not config.replaces(place.path, field):
        return False
    role = keys.Key(place, f"replaced_{field}", "peft")
    groups.setdefault((place.prefix, place.name, True), _Group(role)).add(role, key, shape)
    return True


def _spelling(style: str, place: keys.Place, module: Module) -> str:
    name = _SPELLINGS.get((style or "kohya", place.site)) or _STYLES[style]
    if name == "diffusers-old" and place.name.startswith(("double_blocks.", "single_blocks.")):
        return "xlabs"
    if name == "kohya" and place.prefix == "lora_transformer":
        return "onetrainer"
    if name == "kohya" and (module.kind in _LYCORIS_KINDS or place.prefix == "lycoris"):
        return "lycoris"
    return name


def _notes(modules: Iterable[tuple[Module, str]], spellings: Counter[str], configs: Configs) -> Iterable[str]:
    if len(spellings) > 1:
        yield "spellings: " + ", ".join(f"{count} modules {name}" for name, count in spellings.most_common())
    for config in configs.all():
        if config.kind:
            yield f"{config.source}: {config.kind}: {kinds.NOT_ADDITIVE[config.kind]}"
    # where a configuration is usual, its absence is worth a word; other spellings mean scale 1 when they store no alpha
    bare = [
        module
        for module, spelling in modules
        if module.kind in _SCALED
        and "alpha" not in module.parts
        and module.alpha is None
        and (spelling in ("peft", "comfy") or configs.all())
    ]
    if bare:
        yield f"no alpha is stored for {len(bare)} modules ({bare[0].name}, ...): scale 1 is assumed"


def _account(layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> None:
    placed = [key for module in layout.modules for key in module.parts.values()]
    placed += [key for found in layout.embeddings.values() for key in found]
    placed += layout.unknown
    assert sorted(placed) == sorted(shapes), "a key was lost or counted twice"
