"""What baking does to the weight of one layer, rows at a time: W + Σ w ΔW + Σ λ (W' - W).

The rule: every term is relative to the checkpoint's own weight, so the order of terms does not count. A DoRA of strength
λ moves the weight from W (λ = 0) to what it was trained to be, W' (λ = 1), as ComfyUI does it; PEFT and LyCORIS agree at
λ = 1, and differ between (they scale ΔW inside the norm).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lorahub.algebra.dora import Magnitude, stretch
from lorahub.algebra.lowrank import Block, LowRank


@dataclass(frozen=True, eq=False)
class DoraTerm:
    """`strength` times (W' - W), where W' has the direction W + `delta` and the lengths `magnitude`."""

    strength: float
    delta: LowRank
    magnitude: Magnitude


@dataclass(frozen=True, eq=False)
class Change:
    """The change of one layer of weight shape `shape` = (out, in, *kernel).

    linear: ΔW to add, of matrix shape [out, in * kernel], or None. doras: see `DoraTerm`.
    read: the weight as it is in the checkpoint, of which lengths of input channels need all rows.
    dtype, device: of the arithmetic.
    """

    shape: tuple[int, ...]
    linear: LowRank | None
    doras: Sequence[DoraTerm]
    read: Callable[[], Tensor]
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def apply(self, weight: Tensor, first: int) -> None:
        """Edit rows `first`... of the weight, [n, in * kernel], in place."""
        rows = slice(first, first + weight.shape[0])
        moves = [self._move(weight, rows, index) for index in range(len(self.doras))]
        if self._linear is not None:
            up, down = self._linear
            weight.addmm_(up[rows], down)
        for move in moves:
            weight += move

    def requested(self, weight: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(the change of these rows, an upper bound of the sums of sizes it is made of), both [n, columns].

        weight: those rows, [n, in * kernel]; rows: their numbers.
        """
        total, size = torch.zeros_like(weight), weight.abs()
        if self.linear is not None:
            blocks = tuple(Block(block.up[rows], block.down, block.scale) for block in self.linear.blocks)
            up, down = _factors(LowRank((len(rows), *self.linear.shape[1:]), blocks), self.dtype, self.device)
            total += up @ down
            size += _bound(up, down)
        for index, (up, down) in enumerate(self._deltas):
            move = self._move(weight, rows, index)
            total += move
            size += move.abs() + abs(self.doras[index].strength) * (weight.abs() + _bound(up[rows], down))
        return total, size

    @property
    def rank(self) -> int:
        return sum(part.rank for part in [self.linear, *(dora.delta for dora in self.doras)] if part is not None)

    def _move(self, weight: Tensor, rows: slice | Tensor, index: int) -> Tensor:
        """λ (W' - W) of some rows."""
        dora, (up, down) = self.doras[index], self._deltas[index]
        direction = torch.addmm(weight, up[rows], down)
        if dora.magnitude.of_rows:
            factor = stretch(direction, Magnitude(dora.magnitude.values[rows], True))
        else:
            factor = self._column_factors[index]
        return dora.strength * (direction * factor - weight)

    @cached_property
    def _linear(self) -> tuple[Tensor, Tensor] | None:
        return _factors(self.linear, self.dtype, self.device) if self.linear is not None else None

    @cached_property
    def _deltas(self) -> list[tuple[Tensor, Tensor]]:
        return [_factors(dora.delta, self.dtype, self.device) for dora in self.doras]

    @cached_property
    def _column_factors(self) -> dict[int, Tensor]:
        """For every DoRA with lengths of input channels, what each column of W + ΔW is multiplied by, [1, columns]."""
        found: dict[int, Tensor] = {}
        kernel = math.prod(self.shape[2:])
        for index, (dora, (up, down)) in enumerate(zip(self.doras, self._deltas, strict=True)):
            if not dora.magnitude.of_rows:
                weight = self.read().to(self.device, self.dtype).reshape(up.shape[0], -1)
                direction = torch.addmm(weight, up, down).reshape(self.shape[0], -1, kernel)
                found[index] = stretch(direction, dora.magnitude).repeat_interleave(kernel, dim=2).reshape(1, -1)
        return found


def _factors(layer: LowRank, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """(up, down) with the scales in up; a single block is not copied, unlike by `LowRank.factors`."""
    if not layer.blocks:
        return layer.factors(dtype, device)
    (up, down), scales = layer.unscaled(dtype, device), layer.scales(device)
    return up * scales.to(dtype), down


def _bound(up: Tensor, down: Tensor) -> Tensor:
    """What |up| @ |down| is at most (Cauchy-Schwarz)."""
    return torch.outer(torch.linalg.vector_norm(up, dim=1), torch.linalg.vector_norm(down, dim=0))
