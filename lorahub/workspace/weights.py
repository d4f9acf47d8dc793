"""What only the weights tell: a fingerprint that is the same in every spelling, norms, and damage. Imports torch.

ΔW of a layer is Σ_j u_j v_j^T. A spelling may scale a factor, keep the scale in an alpha, fuse layers, or balance the two
factors by powers of two; the rule here is that none of this changes the fingerprint, and any change of ΔW does.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lorahub import bases
from lorahub.algebra.adapter import Adapter
from lorahub.algebra.geometry import layer_gram
from lorahub.algebra.lowrank import LowRank
from lorahub.errors import LorahubError, VerificationError
from lorahub.files.building import AmbiguousBaseError, build
from lorahub.files.reading import Content, read
from lorahub.workspace.sketching import sketch
from registry.records import Sketch, Validation

FINITE, ZERO, READABLE = "finite", "zero layers", "readable as a vector"
SHOWN = 20


@dataclass(frozen=True)
class Weights:
    """What the weights of a file tell; all but the findings are None where they are no vector, or not finite."""

    fingerprint: str | None
    norms: Mapping[str, float] | None
    findings: tuple[Validation, ...]
    sketch: Sketch | None = None


def read_weights(path: Path, *, base: str | None = None) -> Weights:
    """Read every tensor. Raises NotFoundError and FileFormatError like `lorahub.files.reading.read`."""
    content = read(path)
    bad = [name for name, tensor in content.tensors.items() if not _is_finite(tensor)]
    if bad:
        return Weights(None, None, tuple(_not_finite(bad)))
    finite = Validation(check=FINITE, severity="ok", message=f"{len(content.tensors)} tensors hold only finite numbers")
    try:
        adapter = _adapter(content, base)
        norms = {name: _norm(name, layer) for name, layer in adapter.layers.items()}
    except LorahubError as error:
        return Weights(None, None, (finite, Validation(check=READABLE, severity="info", message=str(error))))
    readable = Validation(check=READABLE, severity="ok", message=f"{len(norms)} layers")
    return Weights(fingerprint(adapter), norms, (finite, readable, *_zeros(norms)), sketch(adapter, norms=norms))


def fingerprint(adapter: Adapter) -> str:
    """sha256 over the layers by canonical name, each the set of its rank-one terms in a normal form.

    Of a term u v^T, u (with the layer's scale, exact in float64 for half-precision weights and scales of up to 42 bits) is
    divided by the power of two that brings its largest entry into [1, 2), and by the sign of that entry; v takes both up.
    """
    digest = hashlib.sha256(b"lorahub fingerprint 1\n")
    for name, layer in sorted(adapter.layers.items()):
        terms = _terms(layer)
        if terms:
            digest.update(f"{name} {list(layer.shape)}\n".encode() + b"".join(sorted(terms)))
    for kind, tensors in (("offset", adapter.offsets), ("embedding", adapter.embeddings)):
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{kind} {name} {list(tensor.shape)}\n".encode() + _bytes(tensor.double()))
    return digest.hexdigest()


def _terms(layer: LowRank) -> list[bytes]:
    """The hash of each rank-one term that is not zero."""
    found: list[bytes] = []
    for block in layer.blocks:
        up, down = block.up.double().T * block.scale, block.down.double()
        largest = up.gather(1, up.abs().argmax(1, keepdim=True))
        exponent = torch.floor(torch.log2(largest.abs().clamp_min(torch.finfo(torch.float64).tiny)))
        factor = torch.exp2(exponent) * torch.where(largest < 0, -1.0, 1.0)
        up, down = (up / factor).contiguous(), (down * factor).contiguous()
        for u, v in zip(up, down, strict=True):
            if u.any() and v.any():
                digest = hashlib.sha256(_bytes(u))
                digest.update(_bytes(v))
                found.append(digest.digest())
    return found


def _bytes(values: Tensor) -> bytes:
    return (values + 0.0).contiguous().numpy().tobytes()  # + 0.0: the two zeros are one number


def _adapter(content: Content, base: str | None) -> Adapter:
    """The vector; where several bases fit, they name the layers alike, and any of them will do."""
    try:
        return build(content, base)
    except AmbiguousBaseError as doubt:
        return build(content, bases.get(sorted(doubt.candidates)[0]))


def _norm(name: str, layer: LowRank) -> float:
    try:
        return math.sqrt(max(float(layer_gram([layer])), 0.0))
    except VerificationError as error:
        raise VerificationError(f"{name}: {error}") from None


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _not_finite(names: list[str]) -> list[Validation]:
    more = f", and {len(names) - SHOWN} more tensors" if len(names) > SHOWN else ""
    return [
        Validation(check=FINITE, severity="error", message=f"holds NaN or Inf{more}", layer=name)
        for name in names[:SHOWN]
    ]


def _zeros(norms: Mapping[str, float]) -> list[Validation]:
    empty = [name for name, norm in norms.items() if norm == 0]
    if not empty:
        return [Validation(check=ZERO, severity="ok", message="every layer does something")]
    severity = "error" if len(empty) == len(norms) else "warning"
    return [
        Validation(
            check=ZERO, severity=severity, message=f"{len(empty)} of {len(norms)} layers are zero", layer=empty[0]
        )
    ]
