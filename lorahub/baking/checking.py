"""Does the baked model answer as the unbaked one with the adapters put on? One seeded pass of each changed component.

The rule: the arithmetic is in float32, so that only the rounding of the written weights can tell the two apart. A check
that could not fail, because the adapter changes less than rounding may, is inconclusive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lorahub.baking.models import answer, loadable, loaded
from lorahub.baking.planning import Plan, change
from lorahub.errors import PartialError, VerificationError
from lorahub.pipeline import attach

_TOLERANCE = {"F64": 1e-4, "F32": 1e-4, "F16": 1e-2, "BF16": 8e-2, "F8_E4M3": 0.5, "F8_E5M2": 0.8}
"""safetensors' dtype -> largest relative difference of outputs that rounding the weights to it may make."""


@dataclass(frozen=True)
class Check:
    """Relative Frobenius distances of outputs, the largest of any component.

    difference: between the baked model and the unbaked one with adapters. tolerance: what it was compared with.
    effect: of the adapters, by component: between the unbaked model with and without them.
    """

    difference: float
    tolerance: float
    effect: Mapping[str, float]


def can_check(plan: Plan) -> None:
    """Raises PartialError, with the reason, when a component that changes cannot be run."""
    for component in _components(plan):
        reason = loadable(plan.checkpoint, component)
        if reason:
            raise PartialError(f"--check is inconclusive: {reason}; nothing was baked, without --check it can be")


def check_outputs(plan: Plan, written: Path) -> Check:
    """Run every component that changes, as it was written and as it was with the adapters on it.

    Raises VerificationError when the outputs differ by more than the tolerance, PartialError when they differ by less,
    but by too large a share of what the adapters change.
    """
    tolerance = max(_TOLERANCE[dtype] for dtype in plan.dtypes)
    worst, effects = 0.0, {}
    for component in _components(plan):
        before, expected = _unbaked(plan, component)
        came = answer(loaded(plan.checkpoint, component, written))
        effects[component] = _apart(expected, before)
        difference = _apart(came, expected)
        if not difference <= tolerance:
            raise VerificationError(
                f"the check failed: baked, {component} answers differently than with the adapters put on, "
                f"by {difference:.2g} of its output (at most {tolerance:g} in {', '.join(plan.dtypes)}); "
                "adapters so strong that the model amplifies rounding do this too"
            )
        if difference > effects[component] / 2:
            raise PartialError(
                f"--check is inconclusive: rounding changes the output of {component} by {difference:.2g}, "
                f"and the adapters by {effects[component]:.2g} only"
            )
        worst = max(worst, difference)
    return Check(worst, tolerance, effects)


def _components(plan: Plan) -> list[str]:
    changed = [*plan.request.layers, *plan.request.adapter.offsets]
    return list(dict.fromkeys(name.partition(".")[0] for name in changed))


def _unbaked(plan: Plan, component: str) -> tuple[Tensor, Tensor]:
    """The answers of the component as it is, and with the adapters: low-rank layers beside it, the rest added."""
    model = loaded(plan.checkpoint, component, plan.checkpoint.path)
    before = answer(model)
    adapter = plan.request.adapter
    mine = {name: layer for name, layer in adapter.layers.items() if name.startswith(f"{component}.") and layer.rank}
    beside = {name: layer for name, layer in mine.items() if name not in plan.request.doras}
    dense = [name for name in (*plan.request.doras, *adapter.offsets) if name.startswith(f"{component}.")]
    with torch.no_grad():
        for name in dense:
            parameter = _parameter(model, name.partition(".")[2])
            change(plan.checkpoint, plan.request, name).apply(parameter.data.reshape(len(parameter), -1), 0)
    if beside:
        pipe: Any = SimpleNamespace(_lora_loadable_modules=[component], **{component: model})
        attach(pipe, replace(adapter, layers=beside, offsets={}, embeddings={}))
    return before, answer(model)


def _parameter(model: nn.Module, name: str) -> nn.Parameter:
    """The weight of a layer, or a vector by its own name; transformers leaves out the level `text_model`."""
    parameters = dict(model.named_parameters())
    spelled = [name, f"{name}.weight"]
    spelled += [each.removeprefix("text_model.") for each in spelled]
    return next(parameters[each] for each in spelled if each in parameters)


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())
