"""Norms and cosine of two SDXL adapters against the operations they need, and against dense matrices.

`python -m benchmarks.compare`.
"""

from __future__ import annotations

import math

import torch

import lorahub as lh
from benchmarks.make import ATTENTION, LCM_TARGETS, Recipe, layer_shapes, make
from benchmarks.measure import gemm_rate, machine, one_thread, seconds, table


def dense(one: lh.Adapter, other: lh.Adapter) -> float:
    """The cosine by way of ΔW, one layer at a time."""
    products = torch.zeros(3, dtype=torch.float64)
    for name in one.layers.keys() | other.layers.keys():
        mine, theirs = (value.layers[name].dense() if name in value.layers else None for value in (one, other))
        if mine is not None:
            products[0] += torch.dot(mine.flatten(), mine.flatten())
        if theirs is not None:
            products[1] += torch.dot(theirs.flatten(), theirs.flatten())
        if mine is not None and theirs is not None:
            products[2] += torch.dot(mine.flatten(), theirs.flatten())
    return float(products[2] / (products[0] * products[1]).sqrt())


def operations(one: Recipe, other: Recipe) -> float:
    """Operations of the Gram matrices behind <a, a>, <b, b> and <a, b>."""
    mine, theirs = layer_shapes(one), layer_shapes(other)
    total = 0
    for name in mine.keys() | theirs.keys():
        shape = mine.get(name) or theirs[name]
        a, b = (one.rank if name in mine else 0), (other.rank if name in theirs else 0)
        total += 2 * (shape[0] + math.prod(shape[1:])) * (a * a + b * b + a * b)
    return float(total)


def main() -> None:
    one_thread()
    print(machine(), "\n")
    rows: list[tuple[object, ...]] = [
        (
            "two norms and a cosine",
            "CPU s",
            "operations at gemm rate, s",
            "ratio",
            "dense, s",
            "faster by",
            "difference",
        )
    ]
    wide, narrow = (Recipe("sdxl", LCM_TARGETS, 64, seed=1), Recipe("sdxl", ATTENTION, 32, seed=2))
    for title, recipes in (
        ("r64 and r64, 788 layers", (wide, Recipe("sdxl", LCM_TARGETS, 64, seed=3))),
        ("r64 and r32, 788 and 560", (wide, narrow)),
        ("r32 and r16, 560 layers", (narrow, Recipe("sdxl", ATTENTION, 16, seed=3))),
    ):
        one, other = make(recipes[0]), make(recipes[1])
        time = seconds(lambda one=one, other=other: lh.cosine(one, other), repeat=5)  # type: ignore[misc]
        floor = operations(*recipes) / gemm_rate()
        difference = abs(lh.cosine(one, other) - dense(one, other))
        slow = seconds(lambda one=one, other=other: dense(one, other))  # type: ignore[misc]
        rows.append((title, time, floor, time / floor, slow, slow / time, difference))
    table(rows)


if __name__ == "__main__":
    main()
