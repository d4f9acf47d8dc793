"""Comparing two SDXL adapters: against the operations it needs, and against dense matrices.

First norms and cosine alone; then all that `lorahub compare` says, which includes how much of its rank each layer uses,
so singular values. The dense ones are timed for one layer of every shape and multiplied by how many layers have it.

`python -m benchmarks.compare`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch

import lorahub as lh
from benchmarks.make import ATTENTION, LCM_TARGETS, Recipe, layer_shapes, make
from benchmarks.measure import core_seconds, gemm_rate, machine, one_thread, seconds, table
from benchmarks.peers import extrapolated, one_of_each
from lorahub.comparing import compare


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


def dense_with_ranks(recipe: Recipe, one: lh.Adapter, other: lh.Adapter) -> float:
    """Seconds for the norms, the cosine and the singular values by way of ΔW, extrapolated from one layer of each shape."""
    timed = {}
    for shape, name in one_of_each(recipe).items():
        pair = [replace(side, layers={name: side.layers[name]}) for side in (one, other)]
        timed[shape] = seconds(partial(dense, *pair))
        for side in pair:
            timed[shape] += seconds(lambda: torch.linalg.svdvals(side.layers[name].dense().flatten(1)))  # noqa: B023
    return extrapolated(recipe, timed)


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
    only_lengths_and_angle()
    print()
    everything()


def everything() -> None:
    """`compare`, the command, without reading the files."""
    recipes = [Recipe("sdxl", LCM_TARGETS, 64, seed=seed) for seed in (1, 3)]
    pair = [make(recipe) for recipe in recipes]
    time = seconds(lambda: compare(*pair), repeat=5)
    floor = operations(*recipes) / gemm_rate() + 2 * len(pair[0].layers) * core_seconds(64)
    slow = dense_with_ranks(recipes[0], *pair)
    table(
        [
            ("norms, cosine, rank use", "CPU s", "products and cores, s", "ratio", "dense, s", "faster by"),
            ("r64 and r64, 788 layers", time, floor, time / floor, slow, slow / time),
        ]
    )


def only_lengths_and_angle() -> None:
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
