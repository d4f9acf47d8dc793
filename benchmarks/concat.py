"""Exact concatenation, rank 64 + 64 -> 128: nothing is computed, so the pace of loading and saving is the measure.

`python -m benchmarks.concat`.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks import worker
from benchmarks.make import Recipe, write
from benchmarks.measure import machine, one_thread, seconds, table


def copy(files: list[Path], out: Path) -> None:
    """safetensors' own load and save of as many bytes: all tensors of all files, copied into memory once."""
    tensors = {
        f"{index}.{key}": value.clone() for index, file in enumerate(files) for key, value in load_file(file).items()
    }
    save_file(tensors, out)


def digest(files: list[Path]) -> None:
    for file in files:
        with file.open("rb") as content:
            hashlib.file_digest(content, "sha256")


def main() -> None:
    one_thread()
    torch.manual_seed(0)
    print(machine(), "\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [write(Recipe("sdxl", seed=seed), folder) for seed in (1, 2)]
        out = folder / "out.safetensors"
        result = worker.run(out, 0, *files, repeat=5)
        peak, size = worker.memory(out, 0, *files)
        pace = seconds(lambda: copy(files, out), repeat=3)
        hashing = seconds(lambda: digest([*files, out]), repeat=3)
    table(
        [
            ("SDXL r64 + r64 -> 128, 788 layers, fp16", "CPU s"),
            ("lorahub", result["total"]),
            *[(f"- {stage}", value) for stage, value in result["stages"].items()],
            ("load_file and save_file of as many bytes", pace),
            ("sha256 of inputs and output, which is recorded", hashing),
            ("lorahub / (load, save and sha256)", result["total"] / (pace + hashing)),
        ]
    )
    print(f"\nmemory beyond mapped inputs: {peak / 1e6:.0f} MB for {size / 1e6:.0f} MB of output")


if __name__ == "__main__":
    main()
