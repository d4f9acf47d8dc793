"""Layer by layer, without base weights: is the adapter applied at run time, fused and baked the same change?

Each layer gets random weights of its true shape, as large as the change that the adapter makes, so that an error in the
change cannot hide behind the weights. The rule: the change it is held to is computed here from the operands' factors,
densely and in float64, apart from the code that is checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lorahub.algebra.adapter import Adapter
from lorahub.errors import LorahubError
from lorahub.pipeline import attach
from lorahub.validate.finding import Finding, Severity

TOLERANCES: Mapping[str, float] = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2}
"""dtype -> largest difference of two outputs, as a share of the larger one."""
_CHECK = "numeric.layers"
_ROWS, _SIDE = 4, 6
"""Inputs of a linear layer; side of the picture that a convolution sees."""


@dataclass(frozen=True)
class Apart:
    """Largest relative difference of each way to apply a layer from the requested change; inf where one is not finite."""

    runtime: float
    fused: float
    baked: float

    @property
    def worst(self) -> float:
        return max(self.runtime, self.fused, self.baked)


def check_layers(
    operands: Sequence[tuple[float, Adapter]],
    *,
    dtype: str = "float32",
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Finding, ...]:
    """Put every layer of the combination on a random layer of its shape by peft, fuse it, bake it, and compare.

    operands: (weight, adapter), added up exactly as an expression adds them. dtype: of the layer and the adapter on it.
    """
    parts = [weight * adapter for weight, adapter in operands]
    try:
        whole = sum(parts[1:], start=parts[0])
    except LorahubError as error:
        return (Finding(_CHECK, Severity.INCONCLUSIVE, f"cannot be judged: {error}"),)
    names = [name for name, layer in whole.layers.items() if layer.rank]
    found: dict[str, Apart] = {}
    with _own_random():
        for done, name in enumerate(names, start=1):
            change = dense(operands, name)
            if bool(change.any()):
                found[name] = _layer(name, whole, change, getattr(torch, dtype), device)
            if progress is not None:
                progress(done, len(names))
    if not found:
        return (Finding(_CHECK, Severity.INCONCLUSIVE, "cannot be judged: no layer changes anything"),)
    return tuple(_findings(found, TOLERANCES[dtype], dtype))


def dense(operands: Sequence[tuple[float, Adapter]], name: str) -> Tensor:
    """Σ weight · scale · up · down of one layer, in float64 and in the shape of its weight."""
    total: Tensor | None = None
    for weight, adapter in operands:
        if name not in adapter.layers:
            continue
        layer = adapter.layers[name]
        for block in layer.blocks:
            part = weight * block.scale * (block.up.double().cpu() @ block.down.double().cpu())
            total = part if total is None else total + part
        shape = layer.shape
    assert total is not None
    return total.reshape(shape)


def _layer(name: str, whole: Adapter, change: Tensor, dtype: torch.dtype, device: str) -> Apart:
    random = torch.Generator().manual_seed(len(name))
    spread = float(change.norm()) / math.sqrt(change.numel())
    weight = torch.randn(change.shape, generator=random) * spread
    entry = torch.randn(_input_shape(change.shape), generator=random)
    # Weights that the dtype cannot hold are judged by the static checks; here the layer's own scale is taken out.
    module = _module(change.shape, weight).to(device, dtype)
    given = entry.to(device, dtype)
    wanted = _module(change.shape, module.weight.double().cpu() + change)(given.double().cpu())
    baked = _module(change.shape, (module.weight.float().cpu() + change.float())).to(device, dtype)(given)
    holder: Any = nn.Module()
    holder.add_module("layer", module)
    attach(
        _pipe(holder),
        Adapter(whole.base, {"model.layer": whole.layers[name]}, recipe=whole.recipe),
        name="validated",
    )
    runtime = holder.layer(given)
    holder.layer.merge()
    fused = holder.layer.get_base_layer()(given)
    return Apart(*(_apart(answer, wanted) for answer in (runtime, fused, baked)))


def _findings(found: Mapping[str, Apart], limit: float, dtype: str) -> Iterator[Finding]:
    bad = {name: apart for name, apart in found.items() if not apart.worst <= limit}
    for name, apart in bad.items():
        ways = ", ".join(f"{way} {getattr(apart, way):.2g}" for way in ("runtime", "fused", "baked"))
        yield Finding(
            _CHECK,
            Severity.FAIL,
            f"not the requested change in {dtype}: {ways} of the output",
            layer=name,
            value=apart.worst,
            limit=limit,
        )
    if not bad:
        worst = max(found, key=lambda name: found[name].worst)
        yield Finding(
            _CHECK,
            Severity.PASS,
            f"{len(found)} layers applied at run time, fused and baked make the requested change in {dtype}; "
            f"the worst, {worst}, is {found[worst].worst:.2g} of its output apart",
            value=found[worst].worst,
            limit=limit,
        )


def _pipe(model: nn.Module) -> Any:
    return SimpleNamespace(_lora_loadable_modules=["model"], model=model)


def _module(shape: Sequence[int], weight: Tensor) -> Any:
    """A linear layer, or a convolution of two or three dimensions, without a bias."""
    kinds: dict[int, type[nn.Module]] = {4: nn.Conv2d, 5: nn.Conv3d}
    kind: Any = kinds.get(len(shape), nn.Linear)
    sizes = (shape[1], shape[0], *([tuple(shape[2:])] if len(shape) > 2 else []))
    module = kind(*sizes, bias=False, device="meta", dtype=weight.dtype)
    module.weight = nn.Parameter(weight, requires_grad=False)
    return module


def _input_shape(shape: Sequence[int]) -> tuple[int, ...]:
    return (_ROWS, shape[1]) if len(shape) == 2 else (1, shape[1], *(max(_SIDE, side) for side in shape[2:]))


def _apart(answer: Tensor, wanted: Tensor) -> float:
    difference = float((answer.detach().double().cpu() - wanted).norm() / wanted.norm())
    return difference if math.isfinite(difference) else math.inf


@contextmanager
def _own_random() -> Iterator[None]:
    """peft draws initial factors, which are replaced; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        yield
