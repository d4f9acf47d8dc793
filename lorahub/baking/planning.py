"""Which tensors of which files change, and how.

The rule: the plan is made from headers alone. The factors of a tensor are made when it is reached, and dropped after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lorahub.algebra.lowrank import LowRank
from lorahub.baking.changes import Change
from lorahub.baking.operands import Request
from lorahub.checkpoints import Checkpoint, Rows
from lorahub.checkpoints.writing import Edit


@dataclass(frozen=True, eq=False)
class Plan:
    """file -> key -> what makes the edit of that tensor."""

    checkpoint: Checkpoint
    request: Request
    edits: Mapping[Path, Mapping[str, Callable[[], Edit]]]

    @property
    def tensors(self) -> int:
        return sum(len(edits) for edits in self.edits.values())

    @property
    def dtypes(self) -> tuple[str, ...]:
        """safetensors' names of the dtypes of the tensors that change."""
        files = self.checkpoint.files
        return tuple(sorted({files[file].tensors[key].dtype for file, edits in self.edits.items() for key in edits}))


def plan(checkpoint: Checkpoint, request: Request, device: str) -> Plan:
    """Every tensor to edit, by file and key."""
    changing = {*request.layers, *request.adapter.offsets}
    edits: dict[Path, dict[str, Callable[[], Edit]]] = {}
    for (file, key), parts in checkpoint.parts.items():
        touched = [(name, rows) for name, rows in parts if name in changing]
        if touched:
            edits.setdefault(file, {})[key] = partial(_edit, checkpoint, request, tuple(touched), device)
    return Plan(checkpoint, request, edits)


def change(
    checkpoint: Checkpoint, request: Request, name: str, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Change:
    """The change of one layer or vector; a vector is a matrix of one column."""
    read = partial(checkpoint.read, name)
    offset = request.adapter.offsets.get(name)
    if offset is not None:
        return Change((len(offset), 1), LowRank.of(offset.reshape(-1, 1), torch.ones(1, 1)), (), read, dtype, device)
    layer = request.adapter.layers.get(name)
    linear = layer if layer is not None and layer.rank else None
    return Change(checkpoint.layers[name].shape, linear, request.doras.get(name, ()), read, dtype, device)


def _edit(checkpoint: Checkpoint, request: Request, parts: tuple[tuple[str, Rows], ...], device: str) -> Edit:
    """The edit of a tensor that holds rows of one or more layers."""
    first_rows = parts[0][1]
    double = checkpoint.files[first_rows.file].tensors[first_rows.key].dtype == "F64"
    dtype = torch.float64 if double else torch.float32
    changes = [(rows, change(checkpoint, request, name, dtype, device)) for name, rows in parts]

    def apply(matrix: Tensor, first: int) -> None:
        for rows, edit in changes:
            if rows.transposed:
                turned = matrix.T[rows.at : rows.at + rows.stop - rows.start].contiguous()
                edit.apply(turned, rows.start)
                matrix.T[rows.at : rows.at + rows.stop - rows.start] = turned
                continue
            start, stop = max(rows.at, first), min(rows.at + rows.stop - rows.start, first + matrix.shape[0])
            if start < stop:
                edit.apply(matrix[start - first : stop - first], rows.start + start - rows.at)

    return Edit(apply, whole=any(rows.transposed for _, rows in parts))
