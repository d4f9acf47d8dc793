"""From vectors to files: how each writable format spells layers, scales and configuration.

The rule: alpha is always explicit, and equal to the rank. But kohya files for a UNet have one alpha for all layers,
because diffusers keeps only their most common one: a layer of another rank carries the difference in its factors.
(Of Flux files it reads each alpha, except those of the final layer, which it takes for the rank.)

Entries say what they will hold before anything is computed, so a file can be written while only one layer is in memory.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorahub.bases.model import Base, Component, flatten
from lorahub.errors import BaseMismatchError
from lorahub.formats.keys import COMPONENTS
from lorahub.formats.offsets import kohya_offsets
from lorahub.formats.rows import Factored, FileLayer, Make, join

UNLISTED_KOHYA = "unlisted:kohya"
UNLISTED_DOTTED = "unlisted:dotted"

COMPONENT_KEY = "lorahub.component"
"""Metadata of a PEFT file: which component of the pipeline it is for, which PEFT itself does not say."""
_PEFT = "base_model.model"
_CLIP = "text_model."
_CLIP_ATTENTION = re.compile(r"text_model\..*\.self_attn\.[qkv]_proj")


@dataclass(frozen=True)
class Entry:
    """Tensors that are made together: (key, shape) of each, their dtype, and the function that makes them."""

    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    dtype: torch.dtype
    make: Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Encoded:
    """A file to be: its entries, its metadata, and the PEFT configuration when there is one."""

    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]
    config: Mapping[str, object] | None = None


def encode_kohya(
    layers: Mapping[str, Factored], offsets: Mapping[str, Tensor], base: Base | None, dtype: torch.dtype
) -> Encoded:
    """sd-scripts spelling: `lora_unet_..._to_q.lora_down.weight`, `.lora_up.weight`, `.alpha`; fused where kohya fuses."""
    pieces = _kohya_layers(layers, base)
    one_for_all = base is None or "unet" in base.components
    common = float(max((piece.rank for piece in pieces), default=0)) if one_for_all else None
    alphas = [float(piece.rank) if common is None else common for piece in pieces]
    entries = [
        _constant(f"{piece.name}.alpha", torch.tensor(alpha, dtype=torch.float32))
        for piece, alpha in zip(pieces, alphas, strict=True)
    ]
    entries += [
        _factor_entry(piece, (f"{piece.name}.lora_down.weight", f"{piece.name}.lora_up.weight"), alpha, dtype)
        for piece, alpha in zip(pieces, alphas, strict=True)
    ]
    entries += [_constant(key, offset.to(dtype)) for key, offset in kohya_offsets(offsets, base).items()]
    return Encoded(
        tuple(entries),
        {
            "ss_network_module": "networks.lora",
            "ss_network_dim": _one_or_dynamic(float(piece.rank) for piece in pieces),
            "ss_network_alpha": _one_or_dynamic(alphas),
        },
    )


def _one_or_dynamic(values: Iterable[float]) -> str:
    """The value that all layers share, or what sd-scripts' resize writes when there are several."""
    distinct = set(values)
    return f"{distinct.pop():g}" if len(distinct) == 1 else "Dynamic"


def encode_diffusers(layers: Mapping[str, Factored], base: Base | None, dtype: torch.dtype) -> Encoded:
    """diffusers spelling: `unet....to_q.lora_A.weight` and `lora_B`, with `lora_adapter_metadata` (alpha = rank)."""
    entries: list[Entry] = []
    config: dict[str, object] = {}
    for component, pieces in _dotted_layers(layers, base).items():
        start = f"{component}." if component else ""
        entries += [_dotted_entry(start, piece, _is_embedding(component, piece, base), dtype) for piece in pieces]
        fields = lora_config({piece.name: piece.rank for piece in pieces})
        config |= {f"{start}{field}": value for field, value in fields.items()}
    return Encoded(tuple(entries), {"lora_adapter_metadata": json.dumps(config, sort_keys=True)})


def encode_peft(
    layers: Mapping[str, Factored], base: Base | None, dtype: torch.dtype, *, flat_clip: bool = False
) -> dict[str, Encoded]:
    """PEFT spelling, one adapter folder per component: component name -> file with its adapter_config.

    flat_clip: name the modules of CLIPTextModel without `text_model.`, as transformers 5 does. PEFT takes names for what
    they are in memory, and a name that it does not find there has no effect.
    """
    result = {}
    for component, pieces in _dotted_layers(layers, base).items():
        if flat_clip and base is not None and has_flat_clip(base.components[component]):
            pieces = [replace(piece, name=piece.name.removeprefix(_CLIP)) for piece in pieces]
        entries = tuple(
            _dotted_entry(f"{_PEFT}.", piece, _is_embedding(component, piece, base), dtype) for piece in pieces
        )
        config = lora_config({piece.name: piece.rank for piece in pieces})
        config |= {"base_model_name_or_path": base.hub_ids[0] if base and base.hub_ids else None}
        metadata = {} if component == _PEFT else {COMPONENT_KEY: component}
        result[component] = Encoded(entries, metadata, config)
    return result


def has_flat_clip(component: Component) -> bool:
    """Whether it is a CLIPTextModel; CLIPTextModelWithProjection keeps the level `text_model` in transformers 5 too."""
    return "text_projection" not in component.layers and any(name.startswith(_CLIP) for name in component.layers)


def fused_rows(base: Base) -> dict[str, int]:
    """canonical layer -> rows of the kohya layer that it is stored in, for layers that are fused there."""
    rows: dict[str, int] = {}
    for component in base.components.values():
        for spans in component.aliases.get(component.kohya_dialect, {}).values():
            height = sum(span.stop - span.start for span in spans)
            rows |= {f"{component.name}.{span.layer}": height for span in spans if len(spans) > 1}
    return rows


def lora_config(ranks: Mapping[str, int]) -> dict[str, object]:
    """The fields of peft's LoraConfig that say alpha = rank for these modules (name -> rank)."""
    common = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
    # Patterns are anchored, so `proj_out` means just that module; but transformers 5 dropped the level `text_model`
    # that files go on naming, so for text encoders they match with and without it.
    plain = {name.removeprefix(_CLIP): rank for name, rank in ranks.items()}
    anchor = "^" if plain.keys() == ranks.keys() else ""
    others = {f"{anchor}{name}": rank for name, rank in plain.items() if rank != common}
    return {
        "peft_type": "LORA",
        "r": common,
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(plain),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def _factor_entry(piece: FileLayer, keys: tuple[str, str], alpha: float | None, dtype: torch.dtype) -> Entry:
    """down and up of one file layer; with an alpha that is not the rank, the factors make up for it."""
    rows, kernel = piece.shape[0], piece.shape[2:]
    down_shape = (piece.rank, *piece.shape[1:])
    up_shape = (rows, piece.rank, *(1 for _ in kernel))

    def make() -> tuple[Tensor, ...]:
        share = piece.rank / alpha if alpha else 1.0
        pairs = [_rounded(term.stored_dtype, term.factors, scale * share, dtype) for term, scale in piece.terms]
        pairs = pairs or [_rounded(piece.stored_dtype, piece.make, share, dtype)]
        up = pairs[0][0] if len(pairs) == 1 else torch.cat([up for up, _ in pairs], dim=1)
        down = pairs[0][1] if len(pairs) == 1 else torch.cat([down for _, down in pairs])
        return down.reshape(down_shape), up.reshape(up_shape)

    return Entry(((keys[0], down_shape), (keys[1], up_shape)), dtype, make)


def _rounded(stored: torch.dtype | None, make: Make, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The factors of one term in `dtype`, the scale folded into up; what is stored in `dtype` stays as it is."""
    up, down = make(stored or torch.float32)
    if scale == 1 and stored == dtype:
        return up, down
    shift = _shift(up, down, scale) if dtype == torch.float16 else None
    if stored == dtype and shift is None:
        return up * scale, down  # torch widens halves to multiply them, so this rounds as often as the long way
    up = up.float() if scale == 1 else up.float() * scale
    if shift is not None:
        up, down = up * shift, down / shift[:, None]
    return up.to(dtype), down.to(dtype)


def _dotted_entry(start: str, piece: FileLayer, embedding: bool, dtype: torch.dtype) -> Entry:
    """lora_A and lora_B of a layer; PEFT keeps those of an embedding transposed, under names of their own."""
    stem = f"{start}{piece.name}"
    entry = _factor_entry(piece, (f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"), None, dtype)
    if not embedding:
        return entry
    (_, (rank, width)), (_, (count, _)) = entry.tensors
    keys = ((f"{stem}.lora_embedding_A", (rank, count)), (f"{stem}.lora_embedding_B", (width, rank)))

    def make() -> tuple[Tensor, ...]:
        down, up = entry.make()
        return up.T, down.T

    return Entry(keys, dtype, make)


def balance(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with both factors of every rank-one term about equally large, scaled by powers of two.

    Half precision loses what lies under 6e-5 or over 65504; powers of two change no mantissa, so this costs nothing.
    """
    shift = _shift(up, down)
    return (up, down) if shift is None else (up * shift, down / shift[:, None])


def _shift(up: Tensor, down: Tensor, scale: float = 1.0) -> Tensor | None:
    """What `balance` multiplies the columns of `up * scale` by; None when all are far from both ends already."""
    sizes = torch.stack((up.abs().amax(0).float() * abs(scale), down.abs().amax(1).float()))
    if bool(((sizes == 0) | ((sizes > 2**-8) & (sizes < 2**12))).all()):
        return None
    ratio = torch.where((sizes > 0).all(0), sizes[1] / sizes[0], 1.0)
    return torch.exp2(torch.round(torch.log2(ratio.clamp(1e-30, 1e30)) / 2))


def _constant(key: str, value: Tensor) -> Entry:
    return Entry(((key, tuple(value.shape)),), value.dtype, lambda: (value,))


def _kohya_layers(layers: Mapping[str, Factored], base: Base | None) -> list[FileLayer]:
    if base is None:
        return [FileLayer.of(name, layer) for name, layer in layers.items()]
    pieces: list[FileLayer] = []
    for component, inside in _by_component(layers, base):
        for module, piece in _file_layers(component, component.kohya_dialect, inside):
            pieces.append(replace(piece, name=f"{component.kohya_prefix}_{flatten(module)}"))
        pieces += [replace(zero, name=f"{component.kohya_prefix}_{flatten(zero.name)}") for zero in _marker(inside)]
    return pieces


def _marker(inside: Mapping[str, Factored]) -> list[FileLayer]:
    """A zero layer, where CLIP attentions have LoRAs but no output projection has one.

    diffusers knows a kohya text encoder by such a projection, and refuses or drops q, k and v where there is none
    (`convert_state_dict_to_diffusers` looks for `to_out_lora`).
    """
    attentions = [name.rpartition(".")[0] for name in inside if _CLIP_ATTENTION.fullmatch(name)]
    if not attentions or any(name.endswith(".self_attn.out_proj") for name in inside):
        return []
    width = inside[next(name for name in inside if name.startswith(attentions[0]))].shape[0]

    def make(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return torch.zeros(width, 1, dtype=dtype), torch.zeros(1, width, dtype=dtype)

    return [FileLayer(f"{attentions[0]}.out_proj", (width, width), 1, make)]


def _dotted_layers(layers: Mapping[str, Factored], base: Base | None) -> dict[str, list[FileLayer]]:
    """component -> its layers; of a base that is not listed, the component is what the names look like, or ""."""
    if base is not None:
        _check_known(layers, base)
    result: dict[str, list[FileLayer]] = {}
    for name, layer in layers.items():
        component, _, module = name.partition(".")
        if base is None and name.startswith(f"{_PEFT}."):
            component, module = _PEFT, name.removeprefix(f"{_PEFT}.")
        elif base is None and component not in COMPONENTS:
            component, module = "", name
        result.setdefault(component, []).append(FileLayer.of(module, layer))
    return result


def _is_embedding(component: str, piece: FileLayer, base: Base | None) -> bool:
    if base is None:
        return False
    embeddings = base.components[component].embeddings
    return piece.name in embeddings or f"{_CLIP}{piece.name}" in embeddings


def _by_component(layers: Mapping[str, Factored], base: Base) -> Iterable[tuple[Component, dict[str, Factored]]]:
    _check_known(layers, base)
    for component in base.components.values():
        start = component.name + "."
        inside = {name.removeprefix(start): layer for name, layer in layers.items() if name.startswith(start)}
        if inside:
            yield component, inside


def _check_known(layers: Mapping[str, Factored], base: Base) -> None:
    strange = [name for name in layers if base.shape(name) is None]
    if strange:
        raise BaseMismatchError(f"{base.name} has no layer {strange[0]!r} ({len(strange)} such layers)")


def _file_layers(component: Component, dialect: str, layers: Mapping[str, Factored]) -> Iterable[tuple[str, FileLayer]]:
    """(module name in the dialect, its factors), joining canonical layers that the dialect fuses."""
    fused = component.aliases[dialect] if dialect != "diffusers" else {}
    owner = {span.layer: alias for alias, spans in fused.items() for span in spans}
    for alias in dict.fromkeys(owner.get(module, module) for module in layers):
        yield alias, join(fused.get(alias), alias, layers, component.layers)
