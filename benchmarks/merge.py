"""Merge two rank-64 adapters into one of rank 64, reading and writing included, against floors and other tools.

`python -m benchmarks.merge [--sd-scripts CHECKOUT] [--quick]`. --quick leaves the slow peers out.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import lorahub as lh
from benchmarks import worker
from benchmarks.make import ATTENTION, Recipe, layer_shapes, make, write
from benchmarks.measure import core_seconds, gemm_rate, machine, one_thread, seconds, table
from benchmarks.peers import SdScripts, extrapolated, one_of_each, pairs, peft_svd
from lorahub.algebra.decompose import decompose

RANK = 64
ROUNDS = 7
SDXL = (Recipe("sdxl", seed=1), Recipe("sdxl", seed=2))
SD15_STYLE = (Recipe("sd15", ATTENTION, 16, seed=1), Recipe("sd15", ATTENTION, 32, seed=2))


def floors(files: tuple[Path, Path], merged: Path) -> dict[str, float]:
    """What the job cannot do without, each measured alone on this machine in this run."""
    total_rank = sum(recipe.rank for recipe in SDXL)
    sides = sum(shape[0] + torch.Size(shape[1:]).numel() for shape in layer_shapes(SDXL[0]).values())
    rate = gemm_rate()
    tensors = {name: tensor.clone() for name, tensor in load_file(merged).items()}
    scratch = merged.with_name("floor.safetensors")
    return {
        "load": seconds(lambda: [load_file(file) for file in files], repeat=3),
        "gram products": 2 * sides * total_rank**2 / rate,
        "cores": core_seconds(total_rank) * len(layer_shapes(SDXL[0])),
        "output products": 2 * sides * total_rank * RANK / rate,
        "save": seconds(lambda: save_file(tensors, scratch), repeat=3),
    }


def accuracy(pair: tuple[lh.LowRank, lh.LowRank]) -> tuple[float, float]:
    """Share by which the error exceeds the optimum, (before rounding, after rounding to fp16), against a full SVD."""
    total = 0.8 * pair[0] + pair[1]
    up, down = total.factors(torch.float64)
    matrix = up @ down
    best = float(torch.linalg.svdvals(matrix)[RANK:].square().sum().sqrt())
    found = decompose(total, lambda sigma: RANK)
    exact = (found.left.double() @ found.up_mix) @ (found.down_mix @ found.right.double())
    rounded = [factor.half().double() for factor in found.factors()]
    errors = [float((matrix - kept).norm()) for kept in (exact, rounded[0] @ rounded[1])]
    return errors[0] / best - 1, errors[1] / best - 1


def sdxl(folder: Path) -> float:
    """Both in turns, because the machine's speed drifts: what counts is the median of the ratios."""
    files = (write(SDXL[0], folder), write(SDXL[1], folder, format="diffusers"))
    merged = folder / "merged.safetensors"
    rounds = [(worker.run(merged, RANK, *files, repeat=1), floors(files, merged)) for _ in range(ROUNDS)]
    ratios = sorted(result["total"] / sum(floor.values()) for result, floor in rounds)
    result, floor = min(rounds, key=lambda both: both[0]["total"])
    print("\nSDXL rank 64 + rank 64 -> 64, kohya and diffusers fp16 files in, one kohya fp16 file out\n")
    table(
        [
            ("lorahub, fastest run", "CPU s"),
            *result["stages"].items(),
            ("all", result["total"]),
            ("wall", result["wall"]),
        ]
    )
    print()
    table([("floor, in that turn", "CPU s"), *floor.items(), ("all", sum(floor.values()))])
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f} in {ROUNDS} turns"
    print(f"\nlorahub / floors: {ratios[ROUNDS // 2]:.2f} (median; {spread})")
    for inputs in (files, (*files, write(Recipe("sdxl", seed=3), folder))):
        peak, size = worker.memory(merged, RANK, *inputs)
        spare = f"output {size / 1e6:.0f} MB + {(peak - size) / 1e6:.0f} MB"
        print(f"memory beyond {len(inputs)} mapped inputs: {spare}")
    return float(result["total"])


def sdxl_peers(ours: float, scripts: SdScripts | None, folder: Path) -> None:
    """One layer of every shape timed, extrapolated over all layers."""
    samples = one_of_each(SDXL[0])
    layers = pairs(*SDXL, list(samples.values()))
    rows: list[tuple[object, ...]] = [("SDXL r64 + r64 -> 64", "CPU s", "lorahub is faster by")]
    for title, settings in (
        ("peft svd, defaults", {}),
        ("peft svd, full_matrices=False", {"svd_full_matrices": False}),
    ):
        whole = extrapolated(SDXL[0], _by_shape(samples, layers, settings))
        rows.append((f"{title} (extrapolated)", whole, whole / ours))
    if scripts:
        timed = {shape: scripts.merge_layer(shape, layers[name], RANK, folder) for shape, name in samples.items()}
        whole = extrapolated(SDXL[0], timed)
        rows.append(("sd-scripts svd_merge_lora (extrapolated)", whole, whole / ours))
    print()
    table(rows)


def _by_shape(
    samples: Mapping[tuple[int, ...], str],
    layers: Mapping[str, tuple[lh.LowRank, lh.LowRank]],
    settings: dict[str, bool],
) -> dict[tuple[int, ...], float]:
    return {shape: peft_svd({name: layers[name]}, RANK, **settings) for shape, name in samples.items()}


def sd15_whole(scripts: SdScripts | None, folder: Path) -> None:
    """Whole runs, nothing extrapolated."""
    files = [write(recipe, folder) for recipe in SD15_STYLE]
    ours = worker.run(folder / "style.safetensors", 32, *files)
    one, two = (make(recipe) for recipe in SD15_STYLE)
    peer = peft_svd({name: (one.layers[name], two.layers[name]) for name in one.layers}, 32)
    rows: list[tuple[object, ...]] = [("SD1.5 r16 + r32 -> 32, 128 layers", "CPU s", "lorahub is faster by")]
    rows.append(("lorahub, reading and writing included", ours["total"], 1.0))
    rows.append(("peft svd, defaults, no reading or writing", peer, peer / ours["total"]))
    if scripts:
        whole = scripts.merge(files, 32, folder / "scripts.safetensors")
        rows.append(("sd-scripts svd_merge_lora", whole, whole / ours["total"]))
    print()
    table(rows)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--sd-scripts", type=Path, help="a checkout of kohya-ss/sd-scripts")
    options.add_argument("--quick", action="store_true", help="leave the slow peers out")
    chosen = options.parse_args()
    one_thread()
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = sdxl(folder)
        samples = one_of_each(SDXL[0])
        excess = [accuracy(pair) for pair in pairs(*SDXL, [samples[shape] for shape in list(samples)[::4]]).values()]
        print(f"\nerror above the optimum, largest of {len(excess)} layers: "
              f"{max(e[0] for e in excess):.1e} before rounding, {max(e[1] for e in excess):.1e} in fp16")  # fmt: skip
        if chosen.quick:
            return
        scripts = SdScripts(chosen.sd_scripts) if chosen.sd_scripts else None
        if scripts is None:
            print("\nsd-scripts: no checkout given (--sd-scripts), its rows are left out")
        sd15_whole(scripts, folder)
        sdxl_peers(ours, scripts, folder)


if __name__ == "__main__":
    main()
