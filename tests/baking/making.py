"""Small models on disk, adapters for them, and what baking must make of their weights, computed in float64."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import lorahub as lh
from lorahub.bases.live import describe
from lorahub.bases.model import Base
from lorahub.checkpoints import open_checkpoint
from tests.checkpoints import making
from tests.files import tiny

Parts = Mapping[str, Mapping[str, Tensor]]


@cache
def models(family: str) -> dict[str, Any]:
    """component -> model of a tiny pipeline, to be left as it is."""
    return tiny.models(tiny.MAKERS[family]())


@cache
def base(family: str) -> Base:
    return describe(f"tiny-{family}", models(family), like=family)


def parts(family: str, dtype: torch.dtype = torch.float16) -> dict[str, dict[str, Tensor]]:
    """component -> its tensors, of a tiny pipeline with random biases and norms."""
    random = torch.Generator().manual_seed(7)
    found: dict[str, dict[str, Tensor]] = {}
    for name, model in models(family).items():
        found[name] = {
            key: (value + 0.1 * torch.randn(value.shape, generator=random)).to(dtype)
            if value.ndim == 1
            else value.to(dtype)
            for key, value in making.weights(model).items()
        }
    return found


def folder(path: Path, tensors: Parts, family: str, *, shards: int = 3) -> Path:
    """A diffusers folder with a sharded UNet, configurations, and files that baking has no business with."""
    for name, model in models(family).items():
        stem = "diffusion_pytorch_model" if name == "unet" else "model"
        if name == "unet":
            making.sharded(path / name, stem, tensors[name], shards)
        else:
            (path / name).mkdir(parents=True)
            save_file(dict(tensors[name]), path / name / f"{stem}.safetensors", {"format": "pt"})
        config = json.loads(model.config.to_json_string()) if name != "unet" else dict(model.config)
        if name == "unet":
            config["_class_name"] = "UNet2DConditionModel"
        else:
            config["architectures"] = [type(model).__name__]
        (path / name / "config.json").write_text(json.dumps(config))
    (path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (path / "vae").mkdir()
    save_file({"conv.weight": torch.ones(2, 2)}, path / "vae" / "diffusion_pytorch_model.safetensors")
    return path


def adapter(
    base: Base,
    *,
    seed: int = 0,
    rank: int = 2,
    size: float = 0.1,
    components: tuple[str, ...] = (),
    offsets: bool = True,
) -> lh.Adapter:
    """Random factors on every layer of the base but embeddings, or of some components, and two offsets."""
    random = torch.Generator().manual_seed(seed)
    layers: dict[str, lh.LowRank] = {}
    for name, component in base.components.items():
        for module, shape in component.layers.items() if not components or name in components else ():
            up = size * torch.randn(shape[0], rank, generator=random)
            down = torch.randn(rank, math.prod(shape[1:]), generator=random)
            layers[f"{name}.{module}"] = lh.LowRank.of(up, down, shape=shape)
    vectors = {"unet.conv_in.bias": base.components["unet"].layers["conv_in"][0]}
    vectors["unet.conv_norm_out.weight"] = base.components["unet"].norms["conv_norm_out"]
    given = {name: torch.randn(length, generator=random) for name, length in vectors.items()} if offsets else {}
    return lh.Adapter(base.name, layers, given)


def saved(value: lh.Adapter, path: Path, base: Base, *, format: str = "kohya") -> Path:
    lh.save(value, path, base=base, format=format, dtype="fp32")
    return path


def read(path: Path, base: Base) -> dict[str, Tensor]:
    """Canonical name -> parameter, of a checkpoint."""
    checkpoint = open_checkpoint(path, base=base)
    return {name: checkpoint.read(name) for name in (*checkpoint.layers, *checkpoint.vectors)}


def added(before: Mapping[str, Tensor], *terms: tuple[float, lh.Adapter]) -> dict[str, Tensor]:
    """The parameters with adapters added, in float64."""
    result = {name: tensor.double() for name, tensor in before.items()}
    for weight, value in terms:
        for name, layer in value.layers.items():
            result[name] = result[name] + weight * layer.dense(torch.float64).reshape(result[name].shape)
        for name, offset in value.offsets.items():
            result[name] = result[name] + weight * offset.double()
    return result


def assert_rounded(came: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, slack: float = 1e-5) -> None:
    """Every number is the wanted one rounded to its dtype, with room for float32 sums."""
    assert came.keys() == wanted.keys()
    for name, tensor in came.items():
        unit = torch.finfo(tensor.dtype).eps / 2
        room = unit * wanted[name].abs() + slack * wanted[name].abs().max() + torch.finfo(tensor.dtype).smallest_normal
        assert bool(((tensor.double() - wanted[name]).abs() <= room).all()), name


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file or folder, by file and key."""
    files = [path] if path.is_file() else sorted(path.rglob("*.safetensors"))
    found: dict[str, Any] = {}
    for file in files:
        found |= {
            f"{file.relative_to(path) if path.is_dir() else ''}:{key}": value for key, value in load_file(file).items()
        }
    return found
