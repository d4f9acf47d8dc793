"""Merge methods on two SDXL-shaped rank-64 adapters, to rank 64: against peft, against the optimum, and in memory.

`python -m benchmarks.ties [--quick]`. One layer of every shape is timed and multiplied by how many layers have it; both
sides in one run. --quick leaves peft out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

import lorahub as lh
from benchmarks.make import Recipe, write
from benchmarks.measure import AnonymousMemory, machine, one_thread, seconds, table
from benchmarks.peers import extrapolated, one_of_each, pairs, peft_svd
from lorahub.merge import METHODS, merge

RANK = 64
ROUNDS = 3
SDXL = (Recipe("sdxl", seed=1), Recipe("sdxl", seed=2))
WEIGHTS = (0.8, 1.0)
TIMED = ("ties", "dare_linear", *(name for name, row in METHODS.items() if not row.dense))

Pairs = dict[tuple[int, ...], tuple[lh.LowRank, lh.LowRank]]


def adapters(pair: tuple[lh.LowRank, lh.LowRank]) -> list[lh.Adapter]:
    return [lh.Adapter("sdxl", {"unet.layer": layer}) for layer in pair]


def merged(pair: tuple[lh.LowRank, lh.LowRank], method: str, rank: int = RANK) -> lh.Truncated:
    return merge(adapters(pair), WEIGHTS, method, {}, lh.fixed(rank), dtype=torch.float16)


def plain(pair: tuple[lh.LowRank, lh.LowRank]) -> lh.Truncated:
    one, other = adapters(pair)
    return lh.truncate(0.8 * one + other, lh.fixed(RANK), dtype=torch.float16)


def over_all(layers: Pairs, works: Mapping[str, Callable[[tuple[lh.LowRank, lh.LowRank]], object]]) -> dict[str, float]:
    """CPU seconds of each work for all layers of the adapter: the fastest of three, in turns, as the machine drifts."""
    times: dict[str, dict[tuple[int, ...], float]] = {name: {} for name in works}
    for shape, pair in layers.items():
        for _ in range(ROUNDS):
            for name, work in works.items():
                taken = seconds(partial(work, pair))
                times[name][shape] = min(times[name].get(shape, taken), taken)
    return {name: extrapolated(SDXL[0], timed) for name, timed in times.items()}


def speed(layers: Pairs, quick: bool) -> None:
    works: dict[str, Callable[[tuple[lh.LowRank, lh.LowRank]], object]] = {"plain SVD combination": plain}
    times = over_all(layers, works | {method: partial(merged, method=method) for method in TIMED})
    rows: list[tuple[object, ...]] = [("SDXL r64 + r64 -> 64 (extrapolated)", "CPU s", "of the plain combination")]
    rows += [(name, time, time / times["plain SVD combination"]) for name, time in times.items()]
    table(rows)
    if quick:
        return
    print()
    rows = [("peft (extrapolated), no reading or writing", "CPU s", "lorahub is faster by")]
    for title, settings in (
        ("ties_svd, defaults", {}),
        ("ties_svd, full_matrices=False", {"svd_full_matrices": False}),
    ):
        slow = {
            shape: peft_svd({"layer": pair}, RANK, combination_type="ties_svd", density=0.5, **settings)
            for shape, pair in layers.items()
        }
        whole = extrapolated(SDXL[0], slow)
        rows.append((title, whole, whole / times["ties"]))
    table(rows)


def excess(layers: Pairs) -> None:
    """Share by which the error of the rank reduction exceeds the optimum, which an exact SVD of the dense ΔW reaches."""
    small = [pair for shape, pair in layers.items() if torch.Size(shape).numel() <= 1280 * 2560][::2]
    rows: list[tuple[object, ...]] = [("excess error of the reduction", "median", "largest", f"of {len(small)} layers")]
    for method in (name for name, row in METHODS.items() if row.dense):
        found = []
        for pair in small:
            made = merged(pair, method)
            best = merge(adapters(pair), WEIGHTS, method, {}, lh.fixed(RANK), dtype=torch.float64)  # by an exact SVD
            found.append(made.error / best.error - 1)
        rows.append((method, f"{sorted(found)[len(found) // 2]:.2%}", f"{max(found):.2%}", ""))
    print()
    table(rows)


def memory(files: list[str]) -> None:
    """Merges the files in this process; prints the peak of what is not mapped, and what bounds it."""
    both = [lh.load(file) for file in files]
    largest = max(torch.Size(layer.shape).numel() for layer in both[0].layers.values()) * 4
    dense = sum(torch.Size(layer.shape).numel() for layer in both[0].layers.values()) * 4
    with AnonymousMemory() as watch:
        made = merge(both, WEIGHTS, "ties", {}, lh.fixed(RANK), dtype=torch.float16)
    sizes = {"peak": watch.peak - watch.start, "output": made.parameters * 2, "largest dense layer": largest}
    sizes["all dense layers"] = dense
    print(f"{len(made.layers)} layers: " + ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in sizes.items()))


def memory_apart(layers: int) -> None:
    """`memory` of two files with that many of the widest linear layers, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        recipes = [Recipe("sdxl", ("ff.net.0.proj",), seed=seed, limit=layers) for seed in (1, 2)]
        files = [str(write(recipe, Path(folder))) for recipe in recipes]
        subprocess.run([sys.executable, "-m", "benchmarks.ties", "--memory", *files], check=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="leave peft out")
    options.add_argument("--memory", nargs=2, metavar="FILE", help="only merge these two files, and report the memory")
    chosen = options.parse_args()
    one_thread()
    if chosen.memory:
        memory(chosen.memory)
        return
    print(machine())
    samples = one_of_each(SDXL[0])
    made = pairs(*SDXL, list(samples.values()))
    layers = {shape: made[name] for shape, name in samples.items()}
    speed(layers, chosen.quick)
    excess(layers)
    print()
    for count in (20, 70):
        memory_apart(count)


if __name__ == "__main__":
    main()
