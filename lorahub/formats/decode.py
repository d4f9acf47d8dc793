"""From the tensors of a module to its weight difference as low-rank factors: exact, whatever the module's kind.

ΔW is the sum over `factors` of `scale * up @ down`, convolutions flattened to [out, in * kernel]. Plain LoRA stays as
it is in the file (views in its own dtype); what has to be computed is computed in float64 and rounded once to float32.
The formulas are those of LyCORIS (lycoris/functional) and PEFT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isfinite, prod

import torch
from torch import Tensor

from lorahub.errors import FileFormatError, NotAdditiveError, VerificationError
from lorahub.formats.kinds import NOT_ADDITIVE, Part, classify
from lorahub.formats.layout import Module

Factors = tuple[Tensor, Tensor]
"""up [out, r] and down [r, in * kernel]"""
Parts = Mapping[str, Tensor]
"""role -> tensor"""


@dataclass(frozen=True)
class Decoded:
    """A module's difference to the base: of its weight (low-rank, or a vector for a norm) and of its bias."""

    factors: tuple[tuple[Tensor, Tensor, float], ...]
    """(up [out, r], down [r, in * kernel], scale)"""
    kernel: tuple[int, ...]
    weight_offset: Tensor | None
    bias_offset: Tensor | None


def decode(module: Module, tensors: Mapping[str, Tensor]) -> Decoded:
    """The difference that `module` describes; `tensors` maps file keys to tensors, of this module at least.

    Raises NotAdditiveError for kinds that are no vector, VerificationError for an alpha that is NaN or infinite.
    """
    if module.kind in NOT_ADDITIVE:
        raise NotAdditiveError(f"{_where(module)}: {NOT_ADDITIVE[module.kind]}")
    parts = {role: tensors[key] for role, key in module.parts.items()}
    scale = _scale(module, parts)
    factors: list[tuple[Tensor, Tensor, float]] = []
    if module.kind in _DECODERS:
        up, down = _DECODERS[module.kind](parts)
        factors.append((up, down, scale))
    if "bias_values" in parts:  # a LoRA's sparse residual, scaled with it (stable-diffusion-webui does so)
        factors.append((*_sparse(module, parts), scale))
    bias = parts.get("bias")
    if "lora_bias" in parts:
        scaled = _wide(parts["lora_bias"]) * scale
        bias = _narrow(scaled if bias is None else _wide(bias) + scaled, parts["lora_bias"])
    return Decoded(tuple(factors), module.kernel, parts.get("diff") if module.kind == "norm" else None, bias)


def decode_dora(module: Module, tensors: Mapping[str, Tensor]) -> tuple[Decoded, Tensor, bool]:
    """The difference ΔW that a DoRA module adds before it rescales, the stored lengths, and whether they are of rows.

    The lengths are [out] when they are of rows, else [in]: the input channels. PEFT's are always of rows, whatever their
    shape ([1, out, 1, 1] of a convolution); of a `dora_scale` the shape tells ([out, 1], [1, in], with ones for a kernel).
    Raises FileFormatError when they fit neither side, NotAdditiveError for an embedding, and what `decode` raises.
    """
    if "dora_scale" not in module.parts:
        raise FileFormatError(f"{_where(module)}: the configuration says DoRA, but the file holds no magnitudes for it")
    key = module.parts["dora_scale"]
    parts = {role: Part(k, tuple(tensors[k].shape)) for role, k in module.parts.items() if role != "dora_scale"}
    found = classify(module.prefix, module.name, parts)
    kind = found[0] if found else ""
    if kind not in _DECODERS or kind == "embedding":
        raise NotAdditiveError(f"{_where(module)}: DoRA of {kind or 'such a module'} cannot be read")
    decoded = decode(replace(module, kind=kind), tensors)
    lengths = tensors[key].float()
    sides = (module.out or 0, (module.inn or 0) // prod(module.kernel))
    if not bool(lengths.isfinite().all()):
        raise VerificationError(f"{key} holds NaN or Inf")
    spelled_by_peft = "dora_scale" not in key
    if lengths.numel() == sides[0] and (spelled_by_peft or lengths.shape[0] == sides[0]):
        return decoded, lengths.flatten(), True
    if not spelled_by_peft and lengths.shape[:2] == (1, sides[1]) and lengths.numel() == sides[1]:
        return decoded, lengths.flatten(), False
    raise FileFormatError(
        f"{key}: expected a length for each of {sides[0]} rows"
        f"{'' if spelled_by_peft else f' or {sides[1]} input channels'}; found shape {list(lengths.shape)}"
    )


def _scale(module: Module, parts: Parts) -> float:
    if module.scale is not None or module.kind in ("full", "norm"):
        return 1.0 if module.scale is None else module.scale
    if module.kind == "lokr" and not module.rank:  # of whole factors, alpha is a sentinel and may be infinite
        return 1.0
    alpha = float(parts["alpha"].item())
    if not isfinite(alpha):
        raise VerificationError(f"{module.parts['alpha']}: expected a finite alpha, found {alpha}")
    return module.scale_with(alpha)


def _lora(parts: Parts) -> Factors:
    return _flat(parts["up"]), _flat(parts["down"])


def _tucker(parts: Parts) -> Factors:
    """einsum('m n k, o m, n i -> o i k', mid, up, down): the core goes into the down factor."""
    mid, down = _wide(parts["mid"]), _wide(_flat(parts["down"]))
    core = torch.einsum("mnk,ni->mik", mid.flatten(2), down).flatten(1)
    return _flat(parts["up"]).to(_working(parts["up"])), _narrow(core, parts["down"])


def _loha(parts: Parts) -> Factors:
    """(A1 B1) * (A2 B2) = KhatriRao(A1, A2) @ KhatriRao(B1, B2): rank r², exactly."""
    (up1, down1), (up2, down2) = (_product(parts, f"hada_w{n}", f"hada_t{n}") for n in (1, 2))
    like = parts["hada_w1_a"]
    if up1.shape[1] * up2.shape[1] >= min(up1.shape[0], down1.shape[1]):
        return _whole(_narrow((up1 @ down1) * (up2 @ down2), like))
    up = (up1[:, :, None] * up2[:, None, :]).flatten(1)
    down = (down1[:, None, :] * down2[None, :, :]).flatten(0, 1)
    return _narrow(up, like), _narrow(down, like)


def _lokr(parts: Parts) -> Factors:
    """kron(U1 D1, U2 D2) = kron(U1, U2) @ kron(D1, D2), each side factored as cheaply as it can be."""
    sides, like = [], next(iter(parts.values()))
    for name, core in (("lokr_w1", "lokr_t1"), ("lokr_w2", "lokr_t2")):
        if name in parts:
            like = parts[name]
            sides.append(_whole(_wide(_flat(like))))
        else:
            like = parts[f"{name}_a"]
            up, down = _product(parts, name, core)
            sides.append((up, down) if up.shape[1] < min(up.shape[0], down.shape[1]) else _whole(up @ down))
    (up1, down1), (up2, down2) = sides
    return _narrow(_kron(up1, up2), like), _narrow(_kron(down1, down2), like)


def _full(parts: Parts) -> Factors:
    return _whole(_flat(parts["diff"]))


def _embedding(parts: Parts) -> Factors:
    """ΔW = (B A)ᵀ, [entries, dim]."""
    return _flat(parts["embedding_a"]).T, _flat(parts["embedding_b"]).T


_DECODERS: Mapping[str, Callable[[Parts], Factors]] = {
    "lora": _lora,
    "tucker": _tucker,
    "loha": _loha,
    "lokr": _lokr,
    "full": _full,
    "embedding": _embedding,
}


def _product(parts: Parts, name: str, core: str) -> Factors:
    """Factors of `name`_a @ `name`_b, or of their Tucker product with a core, in float64."""
    a, b = _wide(_flat(parts[f"{name}_a"])), _wide(_flat(parts[f"{name}_b"]))
    if core not in parts:
        return a, b
    tensor = _wide(parts[core]).flatten(2)
    return a.T, torch.einsum("ijk,jr->irk", tensor, b).flatten(1)


def _kron(first: Tensor, second: Tensor) -> Tensor:
    """torch.kron refuses transposed matrices."""
    rows, columns = first.shape[0] * second.shape[0], first.shape[1] * second.shape[1]
    return (first[:, None, :, None] * second[None, :, None, :]).reshape(rows, columns)


def _sparse(module: Module, parts: Parts) -> Factors:
    size = (module.out or 0, module.inn or 0)
    rows, columns = parts["bias_indices"].long()
    inside = bool(((rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])).all())
    if tuple(parts["bias_size"].tolist()) != size or not inside:
        raise FileFormatError(f"{module.parts['bias_size']}: expected {list(size)} and indices inside it")
    values = parts["bias_values"].to(_working(parts["bias_values"]))
    dense = torch.zeros(size, dtype=values.dtype, device=values.device)
    return _whole(dense.index_put_((rows, columns), values, accumulate=True))


def _whole(matrix: Tensor) -> Factors:
    """A matrix as a product with the identity on its smaller side."""
    out, inn = matrix.shape
    eye = torch.eye(min(out, inn), device=matrix.device).to(matrix.dtype)
    return (eye, matrix) if out <= inn else (matrix, eye)


def _flat(tensor: Tensor) -> Tensor:
    return tensor if tensor.ndim == 2 else tensor.flatten(1)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64)


def _working(like: Tensor) -> torch.dtype:
    """float32, or float64 for a file in float64."""
    return torch.promote_types(like.dtype, torch.float32)


def _narrow(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.to(_working(like))


def _where(module: Module) -> str:
    return f"{module.prefix}.{module.name}".strip(".")
