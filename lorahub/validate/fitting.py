"""From the size of a pipeline and the memory at hand to device, dtype, offload, slicing and batch: arithmetic only.

The rule: the fastest placement that fits is chosen, in the order whole, sliced, components moved in turn, layers moved
in turn. Sizes are estimates on the safe side; a tenth of the memory stays free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lorahub.errors import UsageError

ELEMENTS_PER_PIXEL = 2500
"""Activations while one picture is drawn and decoded, per pixel: SD 1.5 at 512 and SDXL at 1024 pixels stay below."""
MAX_BATCH = 16
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_SLICED = 0.5
_FREE = 0.9


@dataclass(frozen=True)
class Fit:
    """Where and how a pipeline runs. offload: none, model (one component at a time), sequential (one layer at a time).

    sliced: attention and decoding in slices. batch: pictures drawn together.
    """

    device: str
    dtype: str
    offload: str = "none"
    sliced: bool = False
    batch: int = 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def choose(
    parameters: Mapping[str, int], *, device: str, memory: int, pixels: int, flow: bool = False, bf16: bool = True
) -> Fit:
    """The fastest placement that fits.

    parameters: component -> number of parameters. memory: free bytes of the device. pixels: of one picture. flow: flow
    matching models overflow in float16. bf16: whether the device computes in it.
    Raises UsageError when a CPU has too little memory for the pipeline, or a GPU for one component's activations.
    """
    room = int(memory * _FREE)
    if device == "cpu":
        for dtype, sliced in (("float32", False), ("float32", True), ("bfloat16", True)):
            left = room - sum(parameters.values()) * _BYTES[dtype]
            share = _work(pixels, dtype, sliced)
            if left >= share:
                return Fit(device, dtype, "none", sliced, _batch(left, share))
        raise _too_small(sum(parameters.values()) * 2 + _work(pixels, "bfloat16", True), memory, device)
    dtype = ("bfloat16" if bf16 else "float32") if flow else "float16"
    weights = {name: count * _BYTES[dtype] for name, count in parameters.items()}
    for sliced in (False, True):
        left, share = room - sum(weights.values()), _work(pixels, dtype, sliced)
        if left >= share:
            return Fit(device, dtype, "none", sliced, _batch(left, share))
    share = _work(pixels, dtype, True)
    if room >= max(weights.values(), default=0) + share:
        return Fit(device, dtype, "model", True)
    if room >= share:
        return Fit(device, dtype, "sequential", True)
    raise _too_small(share, memory, device)


def _work(pixels: int, dtype: str, sliced: bool) -> int:
    return int(pixels * ELEMENTS_PER_PIXEL * _BYTES[dtype] * (_SLICED if sliced else 1))


def _batch(left: int, share: int) -> int:
    return max(1, min(MAX_BATCH, left // max(1, share)))


def _too_small(needed: int, memory: int, device: str) -> UsageError:
    gib = 2**30
    return UsageError(
        f"{device}: drawing needs about {needed / gib:.1f} GiB and {memory / gib:.1f} GiB are free: "
        "draw smaller pictures, or use another device"
    )
