"""From vectors to files: how each writable format spells layers, scales and configuration.

The rule: alpha is always explicit, and the same for every layer of a file, because diffusers keeps only the most common
alpha of a kohya file. A layer of another rank carries the difference in its factors.

Entries say what they will hold before anything is computed, so a file can be written while only one layer is in memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorahub.bases.model import Base, Component, flatten
from lorahub.errors import BaseMismatchError, UsageError
from lorahub.formats.rows import Factored, FileLayer, join

UNLISTED_KOHYA = "unlisted:kohya"
UNLISTED_DOTTED = "unlisted:dotted"


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
    alpha = float(max((piece.rank for piece in pieces), default=0))
    entries = [_constant(f"{piece.name}.alpha", torch.tensor(alpha, dtype=torch.float32)) for piece in pieces]
    entries += [
        _factor_entry(piece, (f"{piece.name}.lora_down.weight", f"{piece.name}.lora_up.weight"), alpha, dtype)
        for piece in pieces
    ]
    entries += [_constant(key, offset.to(dtype)) for key, offset in _kohya_offsets(offsets, base).items()]
    ranks = {piece.rank for piece in pieces}
    dims = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"  # what sd-scripts' resize writes for mixed ranks
    return Encoded(
        tuple(entries),
        {"ss_network_module": "networks.lora", "ss_network_dim": dims, "ss_network_alpha": f"{alpha:g}"},
    )


def encode_diffusers(layers: Mapping[str, Factored], base: Base | None, dtype: torch.dtype) -> Encoded:
    """diffusers spelling: `unet....to_q.lora_A.weight` and `lora_B`, with `lora_adapter_metadata` (alpha = rank)."""
    pieces = _dotted_layers(layers, base)
    entries = [
        _factor_entry(piece, (f"{piece.name}.lora_A.weight", f"{piece.name}.lora_B.weight"), None, dtype)
        for piece in pieces
    ]
    config: dict[str, object] = {}
    for component in dict.fromkeys(piece.name.partition(".")[0] for piece in pieces):
        ranks = {p.name.partition(".")[2]: p.rank for p in pieces if p.name.startswith(component + ".")}
        config |= {f"{component}.{key}": value for key, value in lora_config(ranks).items()}
    return Encoded(tuple(entries), {"lora_adapter_metadata": json.dumps(config, sort_keys=True)})


def encode_peft(layers: Mapping[str, Factored], base: Base | None, dtype: torch.dtype) -> dict[str, Encoded]:
    """PEFT spelling, one adapter folder per component: component name -> file with its adapter_config."""
    by_component: dict[str, list[FileLayer]] = {}
    for piece in _dotted_layers(layers, base):
        component, _, module = piece.name.partition(".")
        by_component.setdefault(component, []).append(replace(piece, name=module))
    result = {}
    for component, pieces in by_component.items():
        keys = "base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"
        entries = tuple(
            _factor_entry(piece, (keys[0].format(piece.name), keys[1].format(piece.name)), None, dtype)
            for piece in pieces
        )
        config = lora_config({piece.name: piece.rank for piece in pieces})
        config |= {"base_model_name_or_path": base.hub_ids[0] if base and base.hub_ids else None}
        result[component] = Encoded(entries, {"lorahub.component": component}, config)
    return result


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
    plain = {name.removeprefix("text_model."): rank for name, rank in ranks.items()}
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
        as_is = alpha in (None, piece.rank) and piece.stored_dtype == dtype
        up, down = piece.make(dtype if as_is else torch.float32)
        if not as_is:
            up = up * (piece.rank / alpha) if alpha else up
            up, down = balance(up, down) if dtype == torch.float16 else (up, down)
        return down.to(dtype).reshape(down_shape), up.to(dtype).reshape(up_shape)

    return Entry(((keys[0], down_shape), (keys[1], up_shape)), dtype, make)


def balance(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with both factors of every rank-one term about equally large, scaled by powers of two.

    Half precision loses what lies under 6e-5 or over 65504; powers of two change no mantissa, so this costs nothing.
    """
    up_size, down_size = up.float().abs().amax(0), down.float().abs().amax(1)
    ratio = torch.where((up_size > 0) & (down_size > 0), down_size / up_size, 1.0)
    shift = torch.exp2(torch.round(torch.log2(ratio.clamp(1e-30, 1e30)) / 2))
    return up * shift.to(up.dtype), down / shift[:, None].to(down.dtype)


def _constant(key: str, value: Tensor) -> Entry:
    return Entry(((key, tuple(value.shape)),), value.dtype, lambda: (value,))


def _kohya_layers(layers: Mapping[str, Factored], base: Base | None) -> list[FileLayer]:
    if base is None:
        return [FileLayer.of(name, layer) for name, layer in layers.items()]
    pieces: list[FileLayer] = []
    for component, inside in _by_component(layers, base):
        for module, piece in _file_layers(component, component.kohya_dialect, inside):
            name = f"{component.kohya_prefix}_{flatten(module)}"
            pieces.append(replace(piece, name=name))
    return pieces


def _dotted_layers(layers: Mapping[str, Factored], base: Base | None) -> list[FileLayer]:
    if base is not None:
        _check_known(layers, base)
    return [FileLayer.of(name, layer) for name, layer in layers.items()]


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


def _kohya_offsets(offsets: Mapping[str, Tensor], base: Base | None) -> dict[str, Tensor]:
    """`.diff` / `.diff_b` keys of one-dimensional parameters, as ComfyUI and LyCORIS read them."""
    result: dict[str, Tensor] = {}
    for parameter, offset in offsets.items():
        layer, _, kind = parameter.rpartition(".")
        suffix = {"weight": "diff", "bias": "diff_b"}[kind]
        if base is None:
            result[f"{layer}.{suffix}"] = offset
            continue
        name, _, module = layer.partition(".")
        component = base.components[name]
        spelled = module
        if component.kohya_dialect != "diffusers":
            for alias, spans in component.aliases[component.kohya_dialect].items():
                if any(span.layer == module for span in spans):
                    if len(spans) > 1:
                        raise UsageError(f"kohya files cannot hold the offset of {layer}: {alias} is fused there")
                    spelled = alias
        result[f"{component.kohya_prefix}_{flatten(spelled)}.{suffix}"] = offset
    return result
