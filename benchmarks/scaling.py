"""What truncation costs against rank, number of layers and number of inputs; writes benchmarks/scaling.png.

`python -m benchmarks.scaling`. Expected: linear in layers and inputs of one total rank, quadratic in rank.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import matplotlib as mpl
import torch

import lorahub as lh
from benchmarks import worker
from benchmarks.make import ATTENTION, Recipe, make, write
from benchmarks.measure import machine, one_thread, seconds

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

RANKS = (16, 32, 64, 128, 256)
LAYERS = (25, 50, 100, 200, 400)
INPUTS = (1, 2, 4, 8, 16)
WIDE = ("ff.net.0.proj", "ff.net.2")
"""Feed-forward layers of 1280 x 5120 and 1280 x 10240, where products, not small cores, take the time."""


def cost(recipes: list[Recipe], kept: int) -> float:
    total = make(recipes[0])
    for recipe in recipes[1:]:
        total = total + make(recipe)
    return seconds(lambda: lh.truncate(total, lh.fixed(kept), dtype=torch.float16), repeat=3)


def concatenate(folder: Path) -> list[float]:
    """An exact sum from files to file, by number of inputs, each run in its own process."""
    files = [write(Recipe("sdxl", ATTENTION, 16, seed=seed), folder) for seed in range(max(INPUTS))]
    return [worker.run(folder / "sum.safetensors", 0, *files[:count])["total"] for count in INPUTS]


def draw(axes: Axes, title: str, values: tuple[int, ...], times: list[float], power: int) -> None:
    """Points, and the line through the middle point that has the expected slope."""
    middle = len(values) // 2
    expected = [times[middle] * (value / values[middle]) ** power for value in values]
    axes.loglog(values, times, "o-", label="measured")
    axes.loglog(values, expected, "k:", label={1: "linear", 2: "quadratic"}[power])
    axes.set(title=title, ylabel="CPU seconds", xticks=values, xticklabels=map(str, values))
    axes.minorticks_off()
    axes.legend()


def slope(values: tuple[int, ...], times: list[float]) -> float:
    """Exponent between the last two points, where constant costs matter least."""
    return math.log(times[-1] / times[-2]) / math.log(values[-1] / values[-2])


def main() -> None:
    one_thread()
    by_rank = [cost([Recipe("sdxl", WIDE, rank, limit=40)], rank // 4) for rank in RANKS]
    by_layers = [cost([Recipe("sdxl", rank=64, limit=count)], 16) for count in LAYERS]
    with tempfile.TemporaryDirectory() as name:
        by_inputs = concatenate(Path(name))
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    draw(axes[0], "truncate, 40 wide layers, by rank", RANKS, by_rank, 2)
    draw(axes[1], "truncate rank 64 to 16, by layers", LAYERS, by_layers, 1)
    draw(axes[2], "exact sum, file to file, by inputs", INPUTS, by_inputs, 1)
    figure.suptitle(machine(), fontsize=9)
    figure.savefig(Path(__file__).with_name("scaling.png"), dpi=110)
    for name, values, times in (
        ("rank", RANKS, by_rank), ("layers", LAYERS, by_layers), ("inputs", INPUTS, by_inputs),
    ):  # fmt: skip
        print(
            f"{name}: exponent {slope(values, times):.2f};",
            ", ".join(f"{v}: {t:.4f} s" for v, t in zip(values, times, strict=True)),
        )


if __name__ == "__main__":
    main()
