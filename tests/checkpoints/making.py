"""Checkpoints as other programs write them, made from small diffusers pipelines by plain code."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lorahub.bases.model import Base

LDM = "model.diffusion_model."
OPEN_CLIP_BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
BYTES = {"F16": 2, "F32": 4}


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}


def fine_tuned(tensors: Mapping[str, Tensor], *, rank: int, size: float, seed: int) -> dict[str, Tensor]:
    """The tensors with a random ΔW of that rank added to every weight with rows and columns."""
    random = torch.Generator().manual_seed(seed)
    result = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.ndim > 1 and "embedding" not in name.rpartition(".")[0].rpartition(".")[2]:
            matrix = tensor.reshape(len(tensor), -1).double()
            up = torch.randn(len(matrix), rank, generator=random, dtype=torch.float64)
            down = torch.randn(rank, matrix.shape[1], generator=random, dtype=torch.float64)
            result[name] = (matrix + size * up @ down).reshape(tensor.shape).to(tensor.dtype)
    return result


def ldm(unet: Mapping[str, Tensor], base: Base) -> dict[str, Tensor]:
    """A UNet as CompVis and Stability spell it; that the names are theirs, diffusers' converter proves in the tests."""
    names = {spans[0].layer: alias for alias, spans in base.components["unet"].aliases["sgm"].items()}
    result = {}
    for key, tensor in unet.items():
        module, _, kind = key.rpartition(".")
        result[f"{LDM}{names.get(module, module)}.{kind}"] = tensor
    return result


def open_clip(encoder: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A CLIP text encoder of transformers as OpenCLIP spells it: q, k, v in one, the projection transposed."""
    result: dict[str, Tensor] = {}
    plain = {key.removeprefix("text_model."): tensor for key, tensor in encoder.items()}
    for key, tensor in plain.items():
        if key in OPEN_CLIP:
            result[prefix + OPEN_CLIP[key]] = tensor
        elif key == "text_projection.weight":
            result[f"{prefix}text_projection"] = tensor.T.contiguous()
        elif key.startswith("encoder.layers."):
            _, _, number, *inner, kind = key.split(".")
            block, module = f"{prefix}transformer.resblocks.{number}.", ".".join(inner)
            if module in OPEN_CLIP_BLOCK:
                result[f"{block}{OPEN_CLIP_BLOCK[module]}.{kind}"] = tensor
            elif module == "self_attn.q_proj":
                parts = [plain[key.replace("q_proj", f"{x}_proj")] for x in "qkv"]
                result[f"{block}attn.in_proj_{kind}"] = torch.cat(parts)
    return result


def folder(path: Path, parts: Mapping[str, Mapping[str, Tensor]]) -> Path:
    """A diffusers folder: component -> its tensors."""
    for component, tensors in parts.items():
        stem = "model" if component.startswith("text_encoder") else "diffusion_pytorch_model"
        (path / component).mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), path / component / f"{stem}.safetensors")
    return path


def sharded(path: Path, stem: str, tensors: Mapping[str, Tensor], count: int, *, index: bool = True) -> None:
    """The tensors in `count` files, as diffusers and transformers number them."""
    path.mkdir(parents=True, exist_ok=True)
    where = {}
    for number in range(count):
        name = f"{stem}-{number + 1:05}-of-{count:05}.safetensors"
        part = dict(list(tensors.items())[number::count])
        save_file(part, path / name)
        where |= dict.fromkeys(part, name)
    if index:
        (path / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def hollow(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "F16") -> Path:
    """A file with these tensors, all zero: real sizes that take no space on disk."""
    header: dict[str, Any] = {}
    position = 0
    for name, shape in shapes.items():
        size = BYTES[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + position)
    return path
