"""Baking into a UNet the size of SD 1.5, fp16, against diffusers: load, load_lora_adapter, fuse_lora, save.

`python -m benchmarks.bake [--folder DIR] [--repeat 3] [--fp32]`. Each run is a process of its own. Both write to memory
(/dev/shm) unless --folder says otherwise: lorahub flushes what it writes to disk and diffusers does not, and on a slow
disk that alone is longer than the work.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.make import Recipe, write
from benchmarks.measure import AnonymousMemory, machine, one_thread, peak_resident, table


def model(folder: Path) -> Path:
    """The UNet of SD 1.5 with random weights, as diffusers saves it in fp16."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    UNet2DConditionModel(cross_attention_dim=768).half().save_pretrained(folder / "unet")
    return folder / "unet"


def lorahub(adapter: str, into: str, out: str, _: str) -> dict[str, float]:
    import lorahub as lh

    return {"rounding": lh.bake(adapter, into, out, base="sd15").rounding}


def diffusers(adapter: str, into: str, out: str, dtype: str) -> dict[str, float]:
    from diffusers import UNet2DConditionModel
    from safetensors.torch import load_file

    unet = UNet2DConditionModel.from_pretrained(into, torch_dtype=getattr(torch, dtype))
    unet.load_lora_adapter(load_file(adapter), prefix="unet")
    unet.fuse_lora()
    unet.unload_lora()
    unet.save_pretrained(out)
    return {}


def worker(name: str, *arguments: str) -> None:
    """One run in this process; what it took as JSON."""
    one_thread()
    clock, cpu = time.perf_counter(), time.process_time()
    with AnonymousMemory() as memory:
        facts = globals()[name](*arguments)
    facts |= {"wall": time.perf_counter() - clock, "cpu": time.process_time() - cpu}
    print(json.dumps(facts | {"resident": peak_resident(), "anonymous": memory.peak}))


def run(name: str, adapter: Path, into: Path, out: Path, dtype: str, repeat: int) -> dict[str, Any]:
    """The fastest of some runs."""
    results = []
    for _ in range(repeat):
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-m", "benchmarks.bake", "worker", name, str(adapter), str(into), str(out), dtype]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        results.append(json.loads(done.stdout.splitlines()[-1]))
    best: dict[str, Any] = min(results, key=lambda result: result["cpu"])
    return best | {"wall": min(result["wall"] for result in results)}


def difference(one: Path, other: Path) -> float:
    """The largest relative distance of a tensor between two UNets."""
    from safetensors import safe_open

    name = "diffusion_pytorch_model.safetensors"
    with safe_open(one / name, "pt") as left, safe_open(other / name, "pt") as right:
        pairs = ((left.get_tensor(key).float(), right.get_tensor(key).float()) for key in left.keys())  # noqa: SIM118
        return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        worker(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--fp32", action="store_true", help="also diffusers in float32")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        into, adapter = model(folder), write(Recipe("sd15"), folder, format="diffusers")
        jobs = [("lorahub", "float16"), ("diffusers", "float16")] + [("diffusers", "float32")] * given.fp32
        print(machine(), "\n")
        head = ("", "wall s", "CPU s", "peak resident MB", "anonymous MB", "times the CPU", "times the memory")
        rows: list[tuple[object, ...]] = [head]
        first: dict[str, Any] = {}
        for job, dtype in jobs:
            found = run(job, adapter, into, folder / f"{job}-{dtype}", dtype, given.repeat)
            first = first or found
            megabytes = [found[kind] / 1e6 for kind in ("resident", "anonymous")]
            ratios = found["cpu"] / first["cpu"], found["resident"] / first["resident"]
            rows.append((f"{job} {dtype}", found["wall"], found["cpu"], *megabytes, *ratios))
        table(rows)
        print(f"\nrounding changes ΔW by {first['rounding']:.2e} of its norm")
        apart = difference(folder / "lorahub-float16", folder / "diffusers-float16")
        print(f"the two results differ by at most {apart:.2e} in a tensor")


if __name__ == "__main__":
    main()
