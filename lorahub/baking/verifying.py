"""Is what was written what was asked for? Read from the finished files again, and computed anew.

The rule: what was not to change is compared byte for byte. Of every edited layer some rows are compared number by number:
each must be within half a unit in the last place of its dtype, with room for the rounding of float32 sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lorahub import header
from lorahub.baking.planning import Plan, change
from lorahub.checkpoints import Rows
from lorahub.checkpoints.checkpoint import DTYPES
from lorahub.checkpoints.writing import CHUNK_BYTES, fill
from lorahub.errors import VerificationError
from lorahub.header import TensorInfo

SAMPLED_ROWS = 8
"""Of every edited layer, drawn with the seed 0."""


@dataclass(frozen=True)
class Rounding:
    """Frobenius norms, estimated from the rows that were compared: of the change asked for, of what rounding added."""

    requested: float
    added: float

    @property
    def relative(self) -> float:
        return self.added / self.requested if self.requested else 0.0


def verify(plan: Plan, files: Mapping[Path, Path]) -> Rounding:
    """Compare what was written with what the plan asks for; `files` says where each file of the checkpoint went.

    Raises VerificationError naming what differs.
    """
    starts = {old: _compare_unchanged(plan, old, new) for old, new in files.items()}
    random = torch.Generator().manual_seed(0)
    requested, added = 0.0, 0.0
    for name in (*plan.request.layers, *plan.request.adapter.offsets):
        stored = plan.checkpoint.layers.get(name) or plan.checkpoint.vectors[name]
        working = torch.float64 if stored.dtype == "F64" else torch.float32
        edit = change(plan.checkpoint, plan.request, name, working)
        for rows in stored.rows:
            count = rows.stop - rows.start
            picked = torch.randperm(count, generator=random)[:SAMPLED_ROWS].sort().values
            info, start = (
                plan.checkpoint.files[rows.file].tensors[rows.key],
                plan.checkpoint.files[rows.file].data_start,
            )
            before = _rows(rows.file, start, info, rows, picked)
            after = _rows(files[rows.file], starts[rows.file], info, rows, picked)
            asked, size = edit.requested(before.to(working), picked + rows.start)
            wanted = before + asked.double()
            room = 2 * (edit.rank + 16) * 2.0**-24 * size.double()
            apart = after - wanted
            if not bool((apart.abs() <= _half_unit(wanted, DTYPES[info.dtype]) + room).all()):  # also refuses NaN
                raise VerificationError(
                    f"read back, {name} is not what was asked for: it is off by {apart.abs().max():.2g}"
                )
            share = count / len(picked)
            requested += share * float(asked.square().sum())
            added += share * float(apart.square().sum())
    return Rounding(math.sqrt(requested), math.sqrt(added))


def _half_unit(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Half the distance of neighbouring numbers of a dtype around each value."""
    limit = torch.finfo(dtype)
    powers = torch.exp2((torch.frexp(values.abs()).exponent - 1).double())
    return (powers * limit.eps / 2).clamp(min=limit.tiny * limit.eps / 2)


def _rows(file: Path, data_start: int, info: TensorInfo, rows: Rows, picked: Tensor) -> Tensor:
    """Rows of a parameter, counted from the first that lies in this tensor, as a float64 matrix.

    They are read, not mapped: mapped pages would count as memory.
    """
    dtype, columns = DTYPES[info.dtype], math.prod(info.shape[1:])
    wanted = range(info.shape[0]) if rows.transposed else (rows.at + picked).tolist()
    matrix = torch.empty(len(wanted), columns, dtype=dtype)
    with file.open("rb", buffering=0) as stream:
        for number, row in zip(wanted, matrix, strict=True):
            stream.seek(data_start + info.start + number * columns * dtype.itemsize)
            fill(file, stream, row)
    return (matrix.double().T[rows.at + picked] if rows.transposed else matrix).double()


def _compare_unchanged(plan: Plan, old: Path, new: Path) -> int:
    """Where the data of the new file starts."""
    edited = plan.edits.get(old, {})
    before, after = plan.checkpoint.files[old], header.read(new)
    if before.tensors != after.tensors:
        raise VerificationError(f"read back, the header of {old.name} describes other tensors")
    with old.open("rb") as one, new.open("rb") as other:
        for start, stop in _runs([info for key, info in before.tensors.items() if key not in edited]):
            one.seek(before.data_start + start)
            other.seek(after.data_start + start)
            for size in _steps(stop - start):
                if one.read(size) != other.read(size):
                    raise VerificationError(f"read back, {old.name} differs in a tensor that was not to change")
    return after.data_start


def _runs(tensors: list[TensorInfo]) -> Iterator[tuple[int, int]]:
    """The byte ranges of tensors, those that follow one another joined."""
    ranges = sorted((info.start, info.stop) for info in tensors)
    while ranges:
        start, stop = ranges.pop(0)
        while ranges and ranges[0][0] == stop:
            stop = ranges.pop(0)[1]
        yield start, stop


def _steps(size: int) -> Iterator[int]:
    while size:
        yield min(size, CHUNK_BYTES)
        size -= min(size, CHUNK_BYTES)
