"""One layer of an adapter: a low-rank matrix ΔW kept as a sum of factor pairs, never as a dense matrix.

The rule: linear operations are exact and cost nothing. A sum keeps both operands' factors, a scale is one float64 per
pair; factors may stay memory-mapped half-precision tensors until a number is asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lorahub.errors import BaseMismatchError, VerificationError


@dataclass(frozen=True, eq=False)
class Block:
    """`scale · up @ down` with up of shape [out, rank] and down of shape [rank, in], any float dtype."""

    up: Tensor
    down: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.up.ndim != 2 or self.down.ndim != 2 or self.up.shape[1] != self.down.shape[0]:
            raise BaseMismatchError(
                f"factors must be [out, rank] and [rank, in], got {list(self.up.shape)} and {list(self.down.shape)}"
            )
        if not math.isfinite(self.scale):
            raise VerificationError(f"a scale must be finite, got {self.scale}")

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    @cached_property
    def memory(self) -> tuple[object, ...]:
        """Equal for blocks that are multiples of one and the same matrix in memory."""
        return (*_place(self.up), *_place(self.down))


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


@dataclass(frozen=True, eq=False)
class LowRank:
    """ΔW of one layer, of weight shape `shape` = (out, in) or (out, in, *kernel), as a sum of blocks.

    A convolution is the matrix [out, in·kernel]; `shape` remembers how to fold it back.
    """

    shape: tuple[int, ...]
    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        expected = self.matrix_shape
        for block in self.blocks:
            if (block.up.shape[0], block.down.shape[1]) != expected:
                raise BaseMismatchError(
                    f"a layer of shape {list(self.shape)} needs factors [{expected[0]}, r] and "
                    f"[r, {expected[1]}], got {list(block.up.shape)} and {list(block.down.shape)}"
                )

    @classmethod
    def of(cls, up: Tensor, down: Tensor, *, scale: float = 1.0, shape: tuple[int, ...] | None = None) -> LowRank:
        """ΔW = scale · up @ down; `shape` is only needed for convolutions."""
        return cls(shape or (up.shape[0], down.shape[1]), (Block(up, down, scale),))

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(rows, columns) of ΔW as a matrix."""
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def rank(self) -> int:
        """Number of columns stored: an upper bound of the rank of ΔW."""
        return sum(block.rank for block in self.blocks)

    @property
    def stored_dtype(self) -> torch.dtype | None:
        """The dtype of the factors when they are one unscaled pair, which can be handed out as it is; else None."""
        if len(self.blocks) != 1 or self.blocks[0].scale != 1:
            return None
        block = self.blocks[0]
        return block.up.dtype if block.up.dtype == block.down.dtype else None

    @property
    def terms(self) -> tuple[tuple[LowRank, float], ...]:
        """(pair of factors as stored, what it is multiplied by) of every block, in order; ΔW is their sum."""
        return tuple((LowRank(self.shape, (Block(b.up, b.down),)), b.scale) for b in self.blocks)

    def factors(self, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
        """(up [out, R], down [R, in]) with ΔW = up @ down; the scales are folded into up."""
        rows, columns = self.matrix_shape
        if self.stored_dtype == dtype:
            return self.blocks[0].up.to(device), self.blocks[0].down.to(device)
        if not self.blocks:
            return torch.zeros(rows, 0, dtype=dtype, device=device), torch.zeros(0, columns, dtype=dtype, device=device)
        ups = [block.up.to(device, dtype) for block in self.blocks]
        scaled = [up if block.scale == 1 else up * block.scale for up, block in zip(ups, self.blocks, strict=True)]
        down = torch.cat([block.down.to(device, dtype) for block in self.blocks])
        return torch.cat(scaled, dim=1), down

    def unscaled(self, dtype: torch.dtype, device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
        """(up [out, R], down [R, in]) with ΔW = up @ diag(`scales`) @ down, of at least one block."""
        # Stored numbers of one kind are joined before they are widened: fewer bytes are moved.
        stored = {factor.dtype for block in self.blocks for factor in (block.up, block.down)}
        joined = stored.pop() if len(stored) == 1 else dtype
        ups = [block.up.to(device, joined) for block in self.blocks]
        downs = [block.down.to(device, joined) for block in self.blocks]
        if len(self.blocks) == 1:  # then concatenation would only copy
            return ups[0].to(dtype), downs[0].to(dtype)
        return torch.cat(ups, dim=1).to(dtype), torch.cat(downs).to(dtype)

    def scales(self, device: str | torch.device = "cpu") -> Tensor:
        """The scale of every column, float64 [R]."""
        each = np.repeat([block.scale for block in self.blocks], [block.rank for block in self.blocks])
        return torch.from_numpy(each).to(device)

    @property
    def up(self) -> Tensor:
        """float32 [out, R]; ΔW = up @ down."""
        return self.factors()[0]

    @property
    def down(self) -> Tensor:
        """float32 [R, in]; ΔW = up @ down."""
        return self.factors()[1]

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """ΔW itself, of shape `shape`. For tests and small layers: nothing in the algebra needs it."""
        up, down = self.factors(dtype)
        return (up @ down).reshape(self.shape)

    def __add__(self, other: LowRank) -> LowRank:
        if self.matrix_shape != other.matrix_shape:
            raise BaseMismatchError(f"cannot add a layer of shape {list(self.shape)} and one of {list(other.shape)}")
        blocks: dict[tuple[object, ...], Block] = {}
        for new in (*self.blocks, *other.blocks):  # the same factors are gathered, so that a - a is exactly zero
            old = blocks.get(new.memory)
            blocks[new.memory] = Block(old.up, old.down, old.scale + new.scale) if old else new
        return LowRank(self.shape, tuple(block for block in blocks.values() if block.scale != 0))

    def __mul__(self, factor: float) -> LowRank:
        if factor == 0:
            return LowRank(self.shape, ())
        return LowRank(self.shape, tuple(Block(b.up, b.down, b.scale * float(factor)) for b in self.blocks))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> LowRank:
        return LowRank(self.shape, tuple(Block(b.up, b.down, b.scale / float(divisor)) for b in self.blocks))

    def __neg__(self) -> LowRank:
        return self * -1.0

    def __sub__(self, other: LowRank) -> LowRank:
        return self + -other
