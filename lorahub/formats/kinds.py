"""The kinds of adapter modules: which tensors make one, what shapes they must have, and which are no vectors.

The shapes alone give the rank and the size of ΔW, so this module reads no tensor. A file that contradicts itself
(halves that do not fit, missing halves, rank 0) is an error that names the key, what was expected and what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType
from typing import NamedTuple, NoReturn

from lorahub.errors import FileFormatError

Shape = tuple[int, ...]
DEFAULT_RANK = 8
"""PEFT's rank when a configuration names none."""

_MUTATES = "trains on a base it has changed; have PEFT convert it (path_initial_model_for_weight_conversion)"
NOT_ADDITIVE: Mapping[str, str] = MappingProxyType(
    {
        "dora": "DoRA rescales W + ΔW to stored magnitudes, so its effect depends on the base's weights: `lorahub bake` it",
        "oft": "OFT multiplies W by a rotation, so its effect depends on the base's weights",
        "boft": "BOFT multiplies W by a product of rotations, so its effect depends on the base's weights",
        "glora": "GLoRA adds W·A + B, so its effect depends on the base's weights",
        "ia3": "IA3 multiplies activations by stored factors, so its effect depends on the base's weights",
        "set": "set_weight replaces W by a stored weight instead of adding to it",
        "reshape": "reshape_weight pads W to another shape before the LoRA is added",
        "replace": "the file holds a trained copy of the module, which replaces the base's (modules_to_save, bias)",
        "pissa": f"PiSSA {_MUTATES}",
        "olora": f"OLoRA {_MUTATES}",
        "corda": f"CorDA {_MUTATES}",
        "lora_ga": f"LoRA-GA {_MUTATES}",
        "loftq": "LoftQ trains against a base whose weights it quantised",
        "kasa": "KaSA removes singular components of W before it adds its own",
        "qalora": "QALoRA pools the layer's input, so its factors are not a weight difference",
        "bdlora": "BD-LoRA stores block-diagonal factors in a packed form",
        "monteclora": "MonteCLoRA samples its weights",
        "alora": "Activated LoRA works on the tokens after its invocation only",
        "layer_replication": "layer_replication builds a deeper model, so the layers are not the base's",
        "target_parameters": "target_parameters stacks factors per expert",
    }
)
"""kind -> why arithmetic refuses it, in one line."""


class Part(NamedTuple):
    """One tensor of a module, as the header describes it."""

    key: str
    shape: Shape


class Size(NamedTuple):
    """What the shapes say: rank (0 where there is none), rows and flattened columns of ΔW, kernel of a convolution."""

    rank: int
    out: int | None
    inn: int | None
    kernel: Shape


Parts = Mapping[str, Part]


def classify(prefix: str, name: str, parts: Parts) -> tuple[str, Size] | None:
    """The kind and size of the module made of `parts` (role -> part), or None when they make no adapter at all."""
    where = f"{prefix}.{name}".strip(".")
    families = {_FAMILY[role] for role in parts if role in _FAMILY}
    if "lora" in families and "mid" in parts:
        families = families - {"lora"} | {"tucker"}
    if len(families) > 1:
        raise FileFormatError(f"module {where!r} mixes {' and '.join(sorted(families))}: expected one kind of adapter")
    family = families.pop() if families else ("norm" if "bias" in parts else "")
    if not family:
        return None
    if family == "full" and len(parts["diff"].shape) < 2:
        family = "norm"
    if family == "oft" and len(parts["oft_blocks"].shape) == 4:
        family = "boft"
    size = _MEASURES[family](parts, where)
    _check_companions(parts, size, where)
    return next((kind for role, kind in _OVERRIDES if role in parts), family), size


def _check_companions(parts: Parts, size: Size, where: str) -> None:
    if "alpha" in parts and prod(parts["alpha"].shape) != 1:
        _fail(parts["alpha"], "a single number")
    for role in ("bias", "lora_bias"):
        if role in parts and size.out is not None and parts[role].shape != (size.out,):
            _fail(parts[role], f"shape {[size.out]}, one number for each row of ΔW")
    sparse = [role for role in ("bias_indices", "bias_values", "bias_size") if role in parts]
    if sparse and (len(sparse) < 3 or size.out is None or size.inn is None):
        raise FileFormatError(
            f"module {where!r}: expected a LoRA with bias_indices, bias_values and bias_size; found {sparse}"
        )
    if sparse:
        count = prod(parts["bias_values"].shape)
        for role, shape in (("bias_indices", (2, count)), ("bias_values", (count,)), ("bias_size", (2,))):
            if parts[role].shape != shape:
                _fail(parts[role], f"shape {list(shape)}")


def _lora(parts: Parts, where: str) -> Size:
    up, down = _pair(parts, "up", "down", where)
    _same(up, 1, down.shape[0], f"the rank of {down.key}")
    _ones(up, 2)
    return Size(down.shape[0], up.shape[0], prod(down.shape[1:]), down.shape[2:])


def _tucker(parts: Parts, where: str) -> Size:
    up, down = _pair(parts, "up", "down", where)
    mid = _part(parts, "mid", where, 3)
    _same(mid, 0, down.shape[0], f"the rank of {down.key}")
    _same(mid, 1, down.shape[0], f"the rank of {down.key}")
    _same(up, 1, down.shape[0], f"the rank of {down.key}")
    _ones(up, 2)
    _ones(down, 2)
    return Size(down.shape[0], up.shape[0], prod((down.shape[1], *mid.shape[2:])), mid.shape[2:])


def _loha(parts: Parts, where: str) -> Size:
    first = _factored(parts, "hada_w1", "hada_t1", where)
    second = _factored(parts, "hada_w2", "hada_t2", where)
    if first != second:
        _fail(parts["hada_w2_b"], f"factors of the same size as hada_w1's (rank, rows, columns, kernel) {tuple(first)}")
    return first


def _lokr(parts: Parts, where: str) -> Size:
    first = _kron_side(parts, "lokr_w1", where)
    second = _kron_side(parts, "lokr_w2", where)
    if first.rank and second.rank and first.rank != second.rank:
        _fail(parts["lokr_w2_b"], f"the rank of {parts['lokr_w1_b'].key}, {first.rank}")
    if first.kernel:
        raise FileFormatError(f"module {where!r}: expected a matrix as lokr_w1, found a convolution")
    out, inn = (first.out or 0) * (second.out or 0), (first.inn or 0) * (second.inn or 0)
    return Size(second.rank or first.rank, out, inn, second.kernel)


def _kron_side(parts: Parts, name: str, where: str) -> Size:
    """The size of one Kronecker factor, whole (rank 0) or itself factored."""
    if name not in parts:
        return _factored(parts, name, f"{name.replace('_w', '_t')}", where)
    extra = [role for role in parts if role.startswith(f"{name}_") or role == name.replace("_w", "_t")]
    if extra:
        raise FileFormatError(f"module {where!r}: expected {name} or its factors, found both ({extra[0]})")
    whole = _part(parts, name, where, 2)
    return Size(0, whole.shape[0], prod(whole.shape[1:]), whole.shape[2:])


def _factored(parts: Parts, name: str, core: str, where: str) -> Size:
    """The size of `name`_a @ `name`_b, or with a core [r, r, *kernel] of their Tucker product ([r, out], [r, in])."""
    a, b = _pair(parts, f"{name}_a", f"{name}_b", where)
    if core not in parts:
        _same(a, 1, b.shape[0], f"the rank of {b.key}")
        _ones(a, 2)
        return Size(b.shape[0], a.shape[0], prod(b.shape[1:]), b.shape[2:])
    tensor = _part(parts, core, where, 3)
    _same(a, 0, tensor.shape[0], f"the rank of {tensor.key}")
    _same(b, 0, tensor.shape[1], f"the rank of {tensor.key}")
    _same(tensor, 1, tensor.shape[0], "a square core")
    _ones(a, 2)
    _ones(b, 2)
    return Size(b.shape[0], a.shape[1], prod((b.shape[1], *tensor.shape[2:])), tensor.shape[2:])


def _embedding(parts: Parts, where: str) -> Size:
    a, b = _pair(parts, "embedding_a", "embedding_b", where)
    _same(b, 1, a.shape[0], f"the rank of {a.key}")
    _ones(a, 2)
    _ones(b, 2)
    return Size(a.shape[0], a.shape[1], b.shape[0], ())


def _full(parts: Parts, where: str) -> Size:
    shape = _part(parts, "diff", where, 2).shape
    return Size(min(shape[0], prod(shape[1:])), shape[0], prod(shape[1:]), shape[2:])


def _norm(parts: Parts, where: str) -> Size:
    return Size(0, prod(parts["diff" if "diff" in parts else "bias"].shape), None, ())


def _unmeasured(parts: Parts, where: str) -> Size:
    return Size(0, None, None, ())


def _pair(parts: Parts, first: str, second: str, where: str) -> tuple[Part, Part]:
    return _part(parts, first, where, 2), _part(parts, second, where, 2)


def _part(parts: Parts, role: str, where: str, dimensions: int) -> Part:
    """The part with that role, which must be there, have so many dimensions or more, and none of them 0."""
    if role not in parts:
        raise FileFormatError(f"module {where!r}: expected a tensor for {role!r}, found only {sorted(parts)}")
    part = parts[role]
    if len(part.shape) < dimensions or 0 in part.shape:
        _fail(part, f"{dimensions} dimensions or more, none of them 0")
    return part


def _same(part: Part, axis: int, size: int, what: str) -> None:
    if part.shape[axis] != size:
        _fail(part, f"{size} in dimension {axis} ({what})")


def _ones(part: Part, start: int) -> None:
    if prod(part.shape[start:]) != 1:
        _fail(part, f"1 in every dimension from {start} on")


def _fail(part: Part, expected: str) -> NoReturn:
    raise FileFormatError(f"{part.key}: expected {expected}; found shape {list(part.shape)}")


_FAMILY: Mapping[str, str] = {
    **dict.fromkeys(("down", "up", "mid"), "lora"),
    **dict.fromkeys(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"), "loha"),
    **dict.fromkeys(("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"), "lokr"),
    **dict.fromkeys(("embedding_a", "embedding_b"), "embedding"),
    **dict.fromkeys(("a1", "a2", "b1", "b2", "bm"), "glora"),
    **dict.fromkeys(("boft_R", "boft_s"), "boft"),
    **dict.fromkeys(("on_input", "ia3_l"), "ia3"),
    **dict.fromkeys(("replaced_weight", "replaced_bias"), "replace"),
    "oft_blocks": "oft",
    "diff": "full",
    "set_weight": "set",
}
"""role -> the family of modules it belongs to; roles that are not here accompany any family."""

_MEASURES: Mapping[str, Callable[[Parts, str], Size]] = {
    "lora": _lora,
    "tucker": _tucker,
    "loha": _loha,
    "lokr": _lokr,
    "embedding": _embedding,
    "full": _full,
    "norm": _norm,
    **dict.fromkeys(("glora", "boft", "ia3", "replace", "oft", "set"), _unmeasured),
}
_OVERRIDES = (("reshape_weight", "reshape"), ("dora_scale", "dora"))
"""Companions that turn a vector into something else."""
