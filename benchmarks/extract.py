"""Extract an adapter from two SD1.5-sized checkpoints, file to file: against sd-scripts, with error and peak memory.

`python -m benchmarks.extract [--sd-scripts CHECKOUT] [--rank 64]`. sd-scripts decomposes one layer of
every shape with its own `svd` function; the times are multiplied by how many layers have the shape. Its loading of two
whole models is left out, in its favour.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import math
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.measure import machine, one_thread, peak_resident, table
from lorahub import bases
from lorahub.algebra.ranks import RankRule, energy, fixed
from lorahub.checkpoints import Checkpoint, open_checkpoint
from lorahub.making import Wish, make

CONTENT = 128
"""Rank of what the fine-tuned model has learned; on top comes noise, and the rounding of fp16."""


def checkpoints(folder: Path) -> tuple[Path, Path]:
    """Two diffusers folders with the true shapes of SD1.5 in fp16, 860 M numbers in the UNet, 123 M in the encoder.

    tuned - base has singular values i^-1, 5 % of the norm of the weight, with a tenth of that as noise.
    """
    random = torch.Generator().manual_seed(0)
    for component in bases.get("sd15").components.values():
        stem = "model" if component.name == "text_encoder" else "diffusion_pytorch_model"
        base: dict[str, Tensor] = {}
        tuned: dict[str, Tensor] = {}
        for module, shape in component.layers.items():
            key = f"{module}.weight"
            rows, columns = shape[0], math.prod(shape[1:])
            weight = torch.randn(rows, columns, generator=random).mul_(0.02)
            count = min(CONTENT, rows, columns)
            up = torch.randn(rows, count, generator=random) / torch.arange(1, count + 1)
            gap = up @ torch.randn(count, columns, generator=random)
            gap *= 0.001 * math.sqrt(gap.numel()) / torch.linalg.vector_norm(gap)
            gap += torch.randn(rows, columns, generator=random).mul_(0.0001)
            base[key] = weight.half().reshape(shape)
            tuned[key] = (base[key].float().reshape(rows, columns) + gap).half().reshape(shape)
        for module, shape in component.embeddings.items():
            base[f"{module}.weight"] = torch.randn(shape, generator=random).half()
            tuned[f"{module}.weight"] = base[f"{module}.weight"].clone()
        for name, tensors in (("base", base), ("tuned", tuned)):
            (folder / name / component.name).mkdir(parents=True)
            save_file(tensors, folder / name / component.name / f"{stem}.safetensors")
    return folder / "base", folder / "tuned"


def worker(base: str, tuned: str, out: str, rule: str) -> None:
    """One extraction in this process; times and memory as JSON on stdout."""
    one_thread()
    from lorahub.extracting import extract

    empty = peak_resident()
    began, clock = time.process_time(), time.perf_counter()
    found = extract(base, tuned, _rule(rule), dtype=torch.float16)
    made = make(found, out, Wish())
    facts = {"cpu": time.process_time() - began, "wall": time.perf_counter() - clock}
    facts |= {"memory": peak_resident() - empty, "output": made.saved.size, "error": found.relative_error}
    layers = {name: (layer.norm, layer.error, layer.rank) for name, layer in found.report.items()}
    print(json.dumps(facts | {"layers": layers}))


def _rule(text: str) -> RankRule:
    name, _, value = text.partition("=")
    return fixed(int(value)) if name == "rank" else energy(float(value))


def difference(base: Checkpoint, tuned: Checkpoint, name: str) -> Tensor:
    gap = tuned.read(name).float() - base.read(name).float()
    return gap.reshape(len(gap), -1)


def one_of_each(checkpoint: Checkpoint) -> Iterator[tuple[tuple[int, ...], list[str]]]:
    """(shape, the layers that have it)"""
    shapes: dict[tuple[int, ...], list[str]] = {}
    for name, stored in checkpoint.layers.items():
        if not stored.embedding:
            shapes.setdefault(stored.shape, []).append(name)
    yield from shapes.items()


def worst_excess(base: Checkpoint, tuned: Checkpoint, layers: Mapping[str, tuple[float, float, int]]) -> float:
    """The largest error above that of the exact truncation, over one layer of every shape; in float64."""
    worst = 0.0
    for _, names in one_of_each(base):
        gap = difference(base, tuned, names[0]).double()
        wide = gap.T if gap.shape[0] > gap.shape[1] else gap
        squares = torch.linalg.eigvalsh(wide @ wide.T).flip(0)
        _, error, rank = layers[names[0]]
        if rank < len(wide):
            worst = max(worst, error / float(squares[rank:].sum().sqrt()) - 1)
    return worst


class SdScripts:
    """`svd` of `networks/extract_lora_from_models.py`, given one pair of modules instead of two whole models."""

    def __init__(self, checkout: Path) -> None:
        library = types.ModuleType("library")
        for name in ("sai_model_spec", "model_util", "sdxl_model_util", "utils"):
            part = sys.modules[f"library.{name}"] = types.ModuleType(f"library.{name}")
            setattr(library, name, part)
        self.models: list[Any] = []
        vars(sys.modules["library.model_util"]).update(
            load_models_from_stable_diffusion_checkpoint=lambda *_: (None, None, self.models.pop(0)),
            get_model_version_str_for_sd1_sd2=lambda *_: "sd_v1",
        )
        vars(sys.modules["library.utils"]).update(setup_logging=lambda: None)
        lora: Any = types.ModuleType("lora")
        lora.create_network = lambda *arguments, **_: types.SimpleNamespace(
            text_encoder_loras=[], unet_loras=[types.SimpleNamespace(lora_name="x", org_module=arguments[5])]
        )
        lora.create_network_from_weights = self._kept
        sys.modules |= {"library": library, "lora": lora}
        sys.path.insert(0, str(checkout / "networks"))
        self.module: Any = importlib.import_module("extract_lora_from_models")
        self.module.args = types.SimpleNamespace(device=None)
        logging.disable(logging.WARNING)

    def _kept(self, *_: Any, weights_sd: Any) -> tuple[Any, Any]:
        quiet = {name: lambda *_, **__: None for name in ("apply_to", "load_state_dict", "save_weights")}
        return types.SimpleNamespace(**quiet), weights_sd

    def seconds(self, base: Tensor, tuned: Tensor, rank: int) -> float:
        """CPU seconds for one layer."""
        self.models = [types.SimpleNamespace(weight=base), types.SimpleNamespace(weight=tuned)]
        began = time.process_time()
        self.module.svd(
            "", "", "", dim=rank, v2=False, sdxl=False, conv_dim=rank, save_precision="fp16", no_metadata=True
        )
        return time.process_time() - began


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--sd-scripts", type=Path, help="a checkout of kohya-ss/sd-scripts")
    options.add_argument("--rank", type=int, default=64)
    options.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.worker:
        worker(*chosen.worker)
        return
    one_thread()
    print(machine(), "\n", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = checkpoints(folder)
        base, tuned = map(open_checkpoint, paths)
        rows: list[tuple[object, ...]] = [("SD1.5, file to file", "CPU s", "wall s", "memory MB", "output MB", "error")]
        results = {}
        for rule in (f"rank={chosen.rank}", "energy=0.9"):
            command = [sys.executable, "-m", "benchmarks.extract", "--worker", *map(str, paths)]
            done = subprocess.run(
                [*command, str(folder / f"{rule}.safetensors"), rule], capture_output=True, text=True, check=True
            )
            found = results[rule] = json.loads(done.stdout)
            sizes = found["memory"] / 1e6, found["output"] / 1e6
            rows.append((f"lorahub, {rule}", found["cpu"], found["wall"], *sizes, f"{found['error']:.2%}"))
        table(rows)
        fast = results[f"rank={chosen.rank}"]
        print(
            f"\nerror above the exact truncation: at most {worst_excess(base, tuned, fast['layers']):.2%}", flush=True
        )
        if not chosen.sd_scripts:
            print("sd-scripts: no checkout given (--sd-scripts), its row is left out")
            return
        peer, total = SdScripts(chosen.sd_scripts), 0.0
        for shape, names in one_of_each(base):
            once = peer.seconds(base.read(names[0]), tuned.read(names[0]), chosen.rank)
            total += once * len(names)
            print(f"sd-scripts: {len(names)} layers of {list(shape)}, {once:.2f} s each", flush=True)
        print(f"sd-scripts, decomposition alone (extrapolated): {total:.0f} CPU s, {total / fast['cpu']:.0f}x")


if __name__ == "__main__":
    main()
