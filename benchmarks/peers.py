"""Other tools doing the same jobs: peft as installed; sd-scripts and resize_lora from a checkout given by path.

Nothing of theirs is copied: their own functions are called. Slow jobs are timed on one layer of every shape, and the
times multiplied by how many layers have it.
"""

from __future__ import annotations

import importlib
import logging
import sys
import time
import types
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import lorahub as lh
from benchmarks.make import Recipe, by_shape, make


def extrapolated(recipe: Recipe, per_shape: Mapping[tuple[int, ...], float]) -> float:
    """Seconds for all layers from seconds for one layer of each shape."""
    return sum(per_shape[shape] * len(names) for shape, names in by_shape(recipe).items())


def one_of_each(recipe: Recipe) -> dict[tuple[int, ...], str]:
    return {shape: names[0] for shape, names in by_shape(recipe).items()}


def peft_svd(
    layers: Mapping[str, tuple[lh.LowRank, lh.LowRank]], rank: int, combination_type: str = "svd", **settings: Any
) -> float:
    """CPU seconds of peft's add_weighted_adapter on bare modules of the layers' shapes."""
    from peft import LoraConfig, get_peft_model

    names = [name.replace(".", "_") for name in layers]
    bare = torch.nn.ModuleDict(
        {name: _module(pair[0].shape) for name, pair in zip(names, layers.values(), strict=True)}
    )
    ranks = {pair[0].rank for pair in layers.values()}, {pair[1].rank for pair in layers.values()}
    configs = [LoraConfig(r=max(kind), lora_alpha=max(kind), target_modules=names) for kind in ranks]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(bare, configs[0], "one")
        model.add_adapter("two", configs[1])
        for name, pair in zip(names, layers.values(), strict=True):
            for adapter, layer in zip(("one", "two"), pair, strict=True):
                tuned = model.base_model.model[name]
                tuned.lora_A[adapter].weight.copy_(layer.down.reshape(tuned.lora_A[adapter].weight.shape))
                tuned.lora_B[adapter].weight.copy_(layer.up.reshape(tuned.lora_B[adapter].weight.shape))
        began = time.process_time()
        model.add_weighted_adapter(
            ["one", "two"], [0.8, 1.0], "both", combination_type=combination_type, svd_rank=rank, **settings
        )
        return time.process_time() - began


def _module(shape: tuple[int, ...]) -> torch.nn.Module:
    with torch.device("meta"):
        if len(shape) == 2:
            module: torch.nn.Module = torch.nn.Linear(shape[1], shape[0], bias=False)
        else:
            module = torch.nn.Conv2d(shape[1], shape[0], shape[2], bias=False, padding=shape[2] // 2)
    return module.to_empty(device="cpu")


class SdScripts:
    """`networks/svd_merge_lora.py` of a sd-scripts checkout."""

    def __init__(self, checkout: Path) -> None:
        self._stand_in_for_training_library()
        sys.path.insert(0, str(checkout / "networks"))
        self.module = importlib.import_module("svd_merge_lora")
        logging.disable(logging.INFO)

    def merge(self, files: list[Path], rank: int, out: Path) -> float:
        """CPU seconds to merge and write, with its defaults."""
        began = time.process_time()
        merged, *_ = self.module.merge_lora_models(
            [str(file) for file in files], [0.8, 1.0], [], rank, rank, "cpu", torch.float32
        )
        self.module.save_to_file(str(out), {key: value.half() for key, value in merged.items()}, None)
        return time.process_time() - began

    def merge_layer(
        self, shape: tuple[int, ...], pair: tuple[lh.LowRank, lh.LowRank], rank: int, folder: Path
    ) -> float:
        """CPU seconds for one layer, reading and writing included."""
        files = []
        for index, layer in enumerate(pair):
            files.append(folder / f"layer-{index}.safetensors")
            kernel = [1] * len(shape[2:])
            tensors = {
                "lora_unet_x.lora_down.weight": layer.down.half().reshape(layer.rank, *shape[1:]),
                "lora_unet_x.lora_up.weight": layer.up.half().reshape(shape[0], layer.rank, *kernel),
                "lora_unet_x.alpha": torch.tensor(float(layer.rank)),
            }
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, files[-1])
        return self.merge(files, rank, folder / "merged.safetensors")

    @staticmethod
    def _stand_in_for_training_library() -> None:
        """Its training library needs packages that merging does not; only names that merging touches are stood in for."""
        library = types.ModuleType("library")
        parts: dict[str, dict[str, Any]] = {
            "train_util": {
                "SS_METADATA_KEY_V2": "ss_v2",
                "SS_METADATA_KEY_BASE_MODEL_VERSION": "ss_base_model_version",
                "load_metadata_from_safetensors": lambda path: {},
                "build_minimum_network_metadata": lambda *_: {},
            },
            "utils": {"setup_logging": lambda *_, **__: None},
            "sai_model_spec": {},
            "model_util": {},
        }
        for name, attributes in parts.items():
            part = types.ModuleType(f"library.{name}")
            vars(part).update(attributes)
            setattr(library, name, part)
            sys.modules[f"library.{name}"] = part
        sys.modules |= {"library": library, "lora": types.ModuleType("lora")}


def resize_lora(checkout: Path, file: Path, rank: int, out: Path, *, hashed: bool) -> float:
    """CPU seconds of elias-gaeros/resize_lora's own decomposition and writing, every layer to `rank`.

    hashed: with the hashes of the result that its command line records.
    """
    sys.path.insert(0, str(checkout))
    loralib = importlib.import_module("loralib")
    began = time.process_time()
    source = loralib.LoRADict(file, dtype=torch.float32)
    written: dict[str, torch.Tensor] = {}
    for name in sorted(key.removesuffix(".alpha") for key in source.keys if key.endswith(".alpha")):
        layer = loralib.DecomposedLoRA(source, name)
        written |= layer.statedict(mask=torch.arange(layer.dim) < rank, dtype=torch.float16)
    written = {name: tensor.contiguous() for name, tensor in written.items()}
    if hashed:
        importlib.import_module("loralib.metadata").precalculate_safetensors_hashes(written, {})
    save_file(written, out)
    return time.process_time() - began


def pairs(first: Recipe, second: Recipe, names: list[str]) -> dict[str, tuple[lh.LowRank, lh.LowRank]]:
    """The named layers of two made adapters."""
    one, two = make(first), make(second)
    return {name: (one.layers[name], two.layers[name]) for name in names}
