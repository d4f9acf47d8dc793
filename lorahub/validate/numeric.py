"""With the base's own weights: the denoiser with the adapter at run time, fused and baked, on the very same input.

The input is what the pipeline itself gives its denoiser in a first step. The rule: what is compared must also be changed
by the adapter; where it changes less than rounding may, the check is inconclusive. The pipeline is left as it came.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorahub.algebra.adapter import Adapter
from lorahub.errors import LorahubError
from lorahub.pipeline import attach, detach
from lorahub.quiet import quiet
from lorahub.validate.finding import Finding, Severity
from lorahub.validate.numeric_layers import TOLERANCES, dense

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_NAME = "lorahub-validate"
_REPEATS = 3
PROMPT = "a photograph of a house by the sea"


@dataclass(frozen=True)
class Step:
    """One call of the denoiser. seconds: the median of a few. parameters: bytes of its weights, adapters included.

    peak: bytes of the GPU at most in use during the call; None on a CPU.
    """

    seconds: float
    parameters: int
    peak: int | None

    def to_json(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "parameters": self.parameters, "peak": self.peak}


@dataclass(frozen=True)
class Numeric:
    """What the denoiser answered: findings numeric.*, and what a step takes without, at run time, and fused."""

    findings: tuple[Finding, ...]
    steps: Mapping[str, Step]

    def to_json(self) -> dict[str, Any]:
        """`{"steps": {"base" | "runtime" | "fused": seconds, parameters, peak}}`."""
        return {"steps": {name: step.to_json() for name, step in self.steps.items()}}


@torch.no_grad()
def check_pipeline(pipe: DiffusionPipeline, operands: Sequence[tuple[float, Adapter]], **call: Any) -> Numeric:
    """Compare the three ways to apply the combination on a live, placed pipeline without adapters.

    operands: (weight, adapter). call: arguments for the pipeline's one call that gives the input, besides the prompt.
    Raises what `attach` raises for adapters that do not fit the pipeline.
    """
    component, denoiser = denoiser_of(pipe)
    parts = [weight * adapter for weight, adapter in operands]
    whole = sum(parts[1:], start=parts[0])
    args, kwargs = _input(pipe, denoiser, call)
    answers: dict[str, Tensor] = {}
    steps: dict[str, Step] = {}

    def run(way: str) -> None:
        answers[way], steps[way] = _timed(denoiser, args, kwargs)

    run("base")
    with _restored(component, denoiser, whole) as weights:
        attach(pipe, whole, name=_NAME)
        try:
            run("runtime")
            for layer in _tuned(denoiser):
                layer.merge()
            run("fused")
            for layer in _tuned(denoiser):
                layer.unmerge()
        finally:
            detach(pipe, _NAME)
        for name, (weight, before) in weights.items():
            weight.copy_((before.float() + dense(operands, name).to(weight.device, torch.float32)).to(weight.dtype))
        run("baked")
    return Numeric(tuple(_findings(answers, str(denoiser.dtype).removeprefix("torch."))), _as_shipped(steps))


def denoiser_of(pipe: DiffusionPipeline) -> tuple[str, Any]:
    """(name, model) of the U-Net or the transformer. Raises LorahubError when the pipeline has none."""
    for name in ("unet", "transformer"):
        if getattr(pipe, name, None) is not None:
            return name, getattr(pipe, name)
    raise LorahubError(f"{type(pipe).__name__} has neither a U-Net nor a transformer")


class _CaughtError(Exception):
    """Ends the pipeline's call once the input is known."""


def _input(pipe: DiffusionPipeline, denoiser: nn.Module, call: Mapping[str, Any]) -> tuple[Any, Any]:
    caught: list[tuple[Any, Any]] = []

    def catch(module: nn.Module, args: Any, kwargs: Any) -> None:
        caught.append((args, kwargs))
        raise _CaughtError

    handle = denoiser.register_forward_pre_hook(catch, with_kwargs=True)
    given = {"prompt": PROMPT, "num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), **call}
    bar = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(disable=True)
    try:
        with quiet():
            pipe(**given)
    except _CaughtError:
        pass
    finally:
        handle.remove()
        pipe.set_progress_bar_config(**bar)
    return caught[0]


def _timed(denoiser: Any, args: Any, kwargs: Any) -> tuple[Tensor, Step]:
    device = denoiser.device
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    taken = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        answer = denoiser(*args, **kwargs)
        if on_gpu:
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
    first = answer[0] if isinstance(answer, tuple) else answer.sample
    peak = int(torch.cuda.max_memory_allocated(device)) if on_gpu else None
    return first.float().cpu(), Step(sorted(taken)[_REPEATS // 2], _size(denoiser), peak)


def _size(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def _as_shipped(steps: Mapping[str, Step]) -> dict[str, Step]:
    """A change that is fused or baked keeps no factors, so that one stands for both: without peft around the layers."""
    return {"base": steps["base"], "runtime": steps["runtime"], "fused": steps["baked"]}


def _tuned(model: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def _restored(component: str, denoiser: nn.Module, whole: Adapter) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """layer -> (its weight, a copy of what it was); afterwards the weights are what they were, to the bit.

    Taking a fused change off again leaves its rounding behind.
    """
    modules = dict(denoiser.named_modules())
    weights: dict[str, tuple[Tensor, Tensor]] = {}
    for name, layer in whole.layers.items():
        part, _, module = name.partition(".")
        if part == component and layer.rank and module in modules:
            weight: Any = modules[module].weight
            weights[name] = (weight, weight.detach().clone())
    try:
        yield weights
    finally:
        for weight, before in weights.values():
            weight.copy_(before)


def _findings(answers: Mapping[str, Tensor], dtype: str) -> Iterator[Finding]:
    limit = TOLERANCES.get(dtype, TOLERANCES["bfloat16"])
    effect = _apart(answers["runtime"], answers["base"])
    for way, said in (("fused", "fused into the weights"), ("baked", "baked into the weights")):
        value = _apart(answers[way], answers["runtime"])
        if not value <= limit:
            severity, end = Severity.FAIL, f"more than {limit:g} in {dtype}"
        elif value > effect / 2:
            severity, end = Severity.INCONCLUSIVE, f"but the adapter changes the output by {effect:.2g} only"
        else:
            severity, end = (
                Severity.PASS,
                f"at most {limit:g} in {dtype}; the adapter itself changes it by {effect:.2g}",
            )
        yield Finding(
            f"numeric.{way}",
            severity,
            f"{said}, the denoiser's answer differs from that at run time by {value:.2g} of its size, {end}",
            value=value,
            limit=limit,
        )


def _apart(one: Tensor, other: Tensor) -> float:
    difference = float((one.double() - other.double()).norm() / other.double().norm())
    return difference if math.isfinite(difference) else math.inf
