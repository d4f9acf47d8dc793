"""Resize an SDXL adapter from rank 64 to 16: against QR of the factors, in torch and in resize_lora.

`python -m benchmarks.resize [--resize-lora CHECKOUT]`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import lorahub as lh
from benchmarks import worker
from benchmarks.make import Recipe, make, write
from benchmarks.measure import machine, one_thread, seconds, table
from benchmarks.peers import resize_lora

RANK = 16


def qr(layer: lh.LowRank) -> tuple[torch.Tensor, torch.Tensor]:
    """The usual way: Householder QR of both factors, SVD of the small product, all in float32."""
    up, down = layer.factors()
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    u, sigma, vh = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    roots = sigma[:RANK].sqrt()
    return ((q_up @ u[:, :RANK]) * roots).half(), (roots[:, None] * (vh[:RANK] @ q_down.T)).half()


def qr_file(source: Path, out: Path) -> None:
    """The same from file to file, with nothing checked."""
    tensors = load_file(source)
    written = {}
    for name in [key.removesuffix(".lora_up.weight") for key in tensors if key.endswith(".lora_up.weight")]:
        up, down = tensors[f"{name}.lora_up.weight"], tensors[f"{name}.lora_down.weight"]
        new_up, new_down = qr(lh.LowRank.of(up.flatten(1), down.flatten(1)))
        written[f"{name}.lora_up.weight"] = new_up.reshape(-1, RANK, *up.shape[2:]).contiguous()
        written[f"{name}.lora_down.weight"] = new_down.reshape(RANK, *down.shape[1:]).contiguous()
    save_file(written, out)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--resize-lora", type=Path, help="a checkout of elias-gaeros/resize_lora")
    chosen = options.parse_args()
    one_thread()
    print(machine(), "\n")
    adapter = make(Recipe("sdxl"))
    rows: list[tuple[object, ...]] = [("SDXL r64 -> 16, 788 layers", "CPU s", "lorahub is faster by")]
    ours = seconds(lambda: lh.truncate(adapter, lh.fixed(RANK), dtype=torch.float16), repeat=5)
    peer = seconds(lambda: [qr(layer) for layer in adapter.layers.values()], repeat=3)
    rows += [("lorahub, arithmetic", ours, 1.0), ("QR and SVD in torch, arithmetic", peer, peer / ours)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, out = write(Recipe("sdxl"), folder), folder / "out.safetensors"
        result = worker.run(out, RANK, file, repeat=5)
        whole = result["total"]
        rows.append(("lorahub, file to file, hashed, read back and verified", whole, 1.0))
        peer = seconds(lambda: qr_file(file, out), repeat=3)
        rows.append(("QR and SVD in torch, file to file", peer, peer / whole))
        if chosen.resize_lora:
            for title, hashed in (("resize_lora, file to file", False), ("resize_lora, file to file, hashed", True)):
                peer = min(resize_lora(chosen.resize_lora, file, RANK, out, hashed=hashed) for _ in range(3))
                rows.append((title, peer, peer / whole))
    table(rows)
    print("\nlorahub's stages:", ", ".join(f"{name} {value:.2f}" for name, value in result["stages"].items()))
    if not chosen.resize_lora:
        print("resize_lora: no checkout given (--resize-lora), its row is left out")


if __name__ == "__main__":
    main()
