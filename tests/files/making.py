"""Adapters as raw factors, spelled by plain code that shares nothing with the code under test, and their dense twins."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lorahub.algebra import Adapter
from lorahub.bases.model import Base

torch.set_num_threads(1)  # more only wait for each other on matrices this small
TEXT_ENCODERS = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2", "text_encoder_3": "lora_te3"}


@dataclass(frozen=True)
class Raw:
    """One layer as a trainer stores it: ΔW = alpha / rank · up @ down."""

    shape: tuple[int, ...]
    up: Tensor
    down: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    @property
    def delta(self) -> Tensor:
        """ΔW, float64."""
        return (self.alpha / self.rank * (self.up.double() @ self.down.double())).reshape(self.shape)

    @property
    def file_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of down and up as files store them."""
        return (self.rank, *self.shape[1:]), (self.shape[0], self.rank, *(1 for _ in self.shape[2:]))


Trained = Mapping[str, Raw]
"""canonical layer name -> what was trained there"""
Deltas = Mapping[str, Tensor]


def trained(
    base: Base,
    layers: Iterable[str],
    *,
    seed: int,
    ranks: tuple[int, ...] = (1, 3, 4),
    alphas: tuple[float, ...] = (3.0,),
    size: float = 0.05,
) -> dict[str, Raw]:
    """Random factors for these layers of the base; ranks and alphas are dealt out in turn."""
    random = torch.Generator().manual_seed(seed)
    result = {}
    for number, name in enumerate(layers):
        shape = base.shape(name)
        assert shape is not None, name
        rank = ranks[number % len(ranks)]
        up = torch.randn(shape[0], rank, generator=random) * size
        down = torch.randn(rank, math.prod(shape[1:]), generator=random)
        result[name] = Raw(shape, up, down, alphas[number % len(alphas)])
    return result


def deltas(raw: Trained) -> dict[str, Tensor]:
    return {name: layer.delta for name, layer in raw.items()}


def dense(adapter: Adapter) -> dict[str, Tensor]:
    """ΔW of every layer in float64, block by block."""
    result = {}
    for name, layer in adapter.layers.items():
        total = torch.zeros(layer.matrix_shape, dtype=torch.float64)
        for block in layer.blocks:
            total += block.scale * (block.up.double() @ block.down.double())
        result[name] = total.reshape(layer.shape)
    return result


def mixture(*terms: tuple[float, Deltas]) -> dict[str, Tensor]:
    """Σ weight · ΔW, layer by layer."""
    result: dict[str, Tensor] = {}
    for weight, given in terms:
        for name, delta in given.items():
            result[name] = result[name] + weight * delta if name in result else weight * delta
    return result


def probed(given: Trained | Adapter) -> dict[str, Tensor]:
    """ΔW applied to random vectors, in float64: what `dense` says, for layers too large to multiply out."""
    layers: dict[str, list[tuple[float, Tensor, Tensor]]] = {}
    if isinstance(given, Adapter):
        for name, layer in given.layers.items():
            layers[name] = [(block.scale, block.up, block.down) for block in layer.blocks]
    else:
        layers = {name: [(raw.alpha / raw.rank, raw.up, raw.down)] for name, raw in given.items()}
    result = {}
    for name, blocks in layers.items():
        random = torch.Generator().manual_seed(len(name))
        probes = torch.randn(blocks[0][2].shape[1], 4, generator=random, dtype=torch.float64)
        result[name] = sum(
            (scale * (up.double() @ (down.double() @ probes)) for scale, up, down in blocks), start=torch.zeros(())
        )
    return result


def apart(one: Deltas, other: Deltas) -> float:
    """Frobenius distance as a share of the norm of `one`."""
    difference = mixture((1.0, one), (-1.0, other))
    size = math.sqrt(sum(float(delta.square().sum()) for delta in one.values()))
    return math.sqrt(sum(float(delta.square().sum()) for delta in difference.values())) / size


def merge(models: Mapping[str, nn.Module], given: Deltas, weight: float = 1.0) -> None:
    """Add ΔW to the weights of live models."""
    for name, delta in given.items():
        component, _, module = name.partition(".")
        model = models[component]
        if component != "unet" and not hasattr(model, "text_model"):
            module = module.removeprefix("text_model.")
        parameter = model.get_submodule(module).weight
        with torch.no_grad():
            parameter.copy_((parameter.double() + weight * delta).to(parameter.dtype))


def kohya(raw: Trained, encoders: Mapping[str, str] = TEXT_ENCODERS) -> dict[str, Tensor]:
    """sd-scripts' keys, with the names that diffusers gives the modules."""
    tensors = {}
    for name, layer in raw.items():
        component, _, module = name.partition(".")
        stem = f"{encoders.get(component, 'lora_unet')}_{module.replace('.', '_')}"
        down, up = layer.file_shapes
        tensors[f"{stem}.lora_down.weight"] = layer.down.reshape(down).contiguous()
        tensors[f"{stem}.lora_up.weight"] = layer.up.reshape(up).contiguous()
        tensors[f"{stem}.alpha"] = torch.tensor(layer.alpha)
    return tensors


def peft_keys(raw: Trained, start: str = "") -> dict[str, Tensor]:
    """`lora_A` and `lora_B` under the canonical names."""
    tensors = {}
    for name, layer in raw.items():
        down, up = layer.file_shapes
        tensors[f"{start}{name}.lora_A.weight"] = layer.down.reshape(down).contiguous()
        tensors[f"{start}{name}.lora_B.weight"] = layer.up.reshape(up).contiguous()
    return tensors


def peft_metadata(raw: Trained) -> dict[str, str]:
    """What diffusers writes beside them: a PEFT configuration for each component."""
    fields: dict[str, object] = {}
    for component in dict.fromkeys(name.partition(".")[0] for name in raw):
        inside = {name.partition(".")[2]: layer for name, layer in raw.items() if name.startswith(component + ".")}
        rank = Counter(layer.rank for layer in inside.values()).most_common(1)[0][0]
        alpha = Counter(layer.alpha for layer in inside.values()).most_common(1)[0][0]
        config = {
            "r": rank,
            "lora_alpha": alpha,
            # CLIP modules have lost `text_model.` in transformers 5, so their patterns match the end of the name
            "rank_pattern": {_pattern(name): layer.rank for name, layer in inside.items() if layer.rank != rank},
            "alpha_pattern": {_pattern(name): layer.alpha for name, layer in inside.items() if layer.alpha != alpha},
            "target_modules": sorted(name.removeprefix("text_model.") for name in inside),
        }
        fields |= {f"{component}.{field}": value for field, value in config.items()}
    return {"lora_adapter_metadata": json.dumps(fields)}


def _pattern(name: str) -> str:
    return name.removeprefix("text_model.") if name.startswith("text_model.") else f"^{name}"


def written(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> Path:
    save_file(dict(tensors), path, dict(metadata) if metadata else None)
    return path


def header(path: Path) -> dict[str, object]:
    """The JSON header of a safetensors file."""
    raw = path.read_bytes()
    content: dict[str, object] = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return content
