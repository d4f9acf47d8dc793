"""Two thousand numbers that stand for the weights of an adapter, so that thousands can be compared at once.

For each layer, C = S^T ΔW T with S [out, 8] and T [in, 8] of random signs / sqrt(8), drawn from the layer's name alone. The
cores are summed into 32 buckets, again by the layer's name. Since E[S S^T] = I, the inner product of two sketches is an
unbiased estimate of that of the adapters, off by about 1/sqrt(2048) = 0.02 in the cosine between strangers and by much less
between near-duplicates. A sketch is linear in ΔW: spelling, alpha and how the factors are split leave no trace in it.

Sources: the two-sided core of Johnson-Lindenstrauss type as in Clarkson & Woodruff (2009), buckets as in CountSketch (Charikar
et al., 2002). Signs are bits of SHAKE-128, so that every machine and version draws the same. One-dimensional parameters
(biases, norms) are left out. Nothing here imports torch: `lorahub.workspace.sketching` makes sketches from weights.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WIDTH, BUCKETS = 8, 32
SIZE = BUCKETS * WIDTH * WIDTH
KIND = f"core{WIDTH}x{BUCKETS}/1"
"""Names the way of sketching: sketches of another kind are not compared, but made anew."""
_LEVELS, _HEAD = 127, 8

Vector = NDArray[np.float32]
Matrix = NDArray[np.float32]


def pack(values: NDArray[np.float64]) -> bytes:
    """The numbers as a float64 step and an int8 multiple each: 2056 bytes; rounding moves a cosine by less than 0.001."""
    largest = float(np.abs(values).max(initial=0.0))
    step = largest / _LEVELS or 1.0
    return struct.pack("<d", step) + np.rint(values / step).astype("i1").tobytes()


def unpack(data: bytes) -> Vector:
    """The numbers of one sketch, float32 [2048]."""
    values: Vector = np.frombuffer(data, "i1", offset=_HEAD).astype(np.float32)
    return values * np.float32(struct.unpack_from("<d", data)[0])


def cosines(query: bytes, others: Sequence[bytes]) -> Vector:
    """The cosine of the angle between one sketch and each of many, float32 [n]; 0 to a sketch of nothing.

    Each sketch has a step of its own, which cancels in the cosine: the multiples are compared as they are.
    """
    if not others:
        return np.zeros(0, np.float32)
    rows = np.frombuffer(b"".join(others), "i1").reshape(len(others), SIZE + _HEAD)[:, _HEAD:]
    wanted = np.frombuffer(query, "i1", offset=_HEAD).astype(np.float32)
    wanted /= float(np.linalg.norm(wanted)) or 1.0
    result = np.empty(len(others), np.float32)
    for start in range(0, len(others), 256):  # a few at a time stay in the cache
        some = rows[start : start + 256].astype(np.float32)
        lengths = np.sqrt(np.einsum("ij,ij->i", some, some))
        result[start : start + 256] = (some @ wanted) / np.where(lengths == 0, 1, lengths)
    return result


def bucket(layer: str) -> int:
    """Into which bucket the core of a layer goes."""
    return hashlib.sha256(layer.encode("utf-8", "surrogatepass")).digest()[0] % BUCKETS


def signs(seed: str, count: int) -> Matrix:
    """Random signs, float32 [count, 8]: one byte of SHAKE-128 a row."""
    drawn = hashlib.shake_128(f"lorahub sketch 1|{seed}".encode("utf-8", "surrogatepass")).digest(count)
    bits = np.unpackbits(np.frombuffer(drawn, np.uint8).reshape(count, 1), axis=1)
    return bits.astype(np.float32) * np.float32(2) - np.float32(1)
