"""DoRA: what a weight becomes when its direction is W + ΔW and its lengths are stored (arXiv 2402.09353).

W' = m * (W + ΔW) / ‖W + ΔW‖, where the norm runs over each row of the weight (PEFT, LyCORIS by default), or over each
input channel (older LyCORIS, OneTrainer). It depends on W, so a DoRA is no vector; W' - W is one, once W is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Magnitude:
    """The stored lengths of a layer: one for each row of its weight, or one for each of its input channels."""

    values: Tensor
    """[out] or [in]"""
    of_rows: bool


def stretch(directions: Tensor, magnitude: Magnitude) -> Tensor:
    """m / ‖W + ΔW‖: what `directions` = W + ΔW, of shape [out, in, *kernel], is multiplied by to become W'.

    Shape [out, 1, ...] or [1, in, 1, ...], in the dtype and on the device of `directions`. What has length 0 has no
    direction, and is multiplied by 0.
    """
    axes = [axis for axis in range(directions.ndim) if axis != (0 if magnitude.of_rows else 1)]
    norms = torch.linalg.vector_norm(directions, dim=axes, keepdim=True)
    lengths = magnitude.values.to(directions.device, directions.dtype).reshape(norms.shape)
    return torch.where(norms > 0, lengths / norms, 0.0)
