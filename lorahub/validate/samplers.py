"""The samplers of the base by name, and those of accelerators: which diffusers scheduler, with which arguments.

The rule: a pipeline trained by flow matching takes flow-matching schedulers only, any other pipeline none of them. The
noise schedule is the pipeline's own; timesteps are trailing, so that sampling begins at the pure noise it is given
(arXiv 2305.08891), which favours the base at few steps.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lorahub.errors import UsageError
from lorahub.validate.cells import Acceleration
from lorahub.workspace.accelerators import FAMILIES

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from registry.records import RunSettings

_TRAILING = {"timestep_spacing": "trailing"}
_DIFFUSION: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "dpmsolver++": ("DPMSolverMultistepScheduler", _TRAILING | {"algorithm_type": "dpmsolver++"}),
    "ddim": ("DDIMScheduler", _TRAILING),
    "unipc": ("UniPCMultistepScheduler", _TRAILING),
    "euler": ("EulerDiscreteScheduler", _TRAILING),
}
_FLOW: Mapping[str, tuple[str, Mapping[str, Any]]] = {"euler": ("FlowMatchEulerDiscreteScheduler", {})}

NAMES = tuple(_DIFFUSION)
"""Samplers of a base, the default reference first."""


def is_flow(pipe: DiffusionPipeline) -> bool:
    """Whether the pipeline was trained by flow matching, as SD3 and Flux were: its own scheduler tells."""
    return type(pipe.scheduler).__name__.startswith("FlowMatch")


def fitting_names(pipe: DiffusionPipeline, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The samplers to draw with: those wanted, or all that the pipeline takes.

    Raises UsageError for a name that is none, or that the pipeline does not take.
    """
    known = _FLOW if is_flow(pipe) else _DIFFUSION
    for name in wanted:
        if name not in known:
            what = f"{type(pipe).__name__} (flow matching)" if is_flow(pipe) else type(pipe).__name__
            raise UsageError(f"sampler {name!r} does not draw with {what}: expected one of {', '.join(known)}")
    return wanted or tuple(known)


def scheduler(pipe: DiffusionPipeline, sampler: str, acceleration: Acceleration | None) -> Any:
    """A fresh scheduler with the pipeline's own noise schedule: of a name above, or else that of the acceleration.

    Raises UsageError for a scheduler that does not exist or that does not fit the pipeline.
    """
    import diffusers

    table = _FLOW if is_flow(pipe) else _DIFFUSION
    if sampler in table:
        kind, arguments = table[sampler]
    elif acceleration is not None and sampler == acceleration.scheduler:
        kind, arguments = acceleration.scheduler, acceleration.arguments
    else:
        raise UsageError(f"no sampler {sampler!r}: expected one of {', '.join(table)}, or that of the acceleration")
    made = getattr(diffusers, kind, None)
    if made is None or not hasattr(made, "from_config"):
        raise UsageError(f"diffusers has no scheduler {kind!r}")
    if kind.startswith("FlowMatch") != is_flow(pipe):
        raise UsageError(
            f"{kind} does not draw with {type(pipe).__name__}, whose own is {type(pipe.scheduler).__name__}"
        )
    taken = inspect.signature(made.__init__).parameters
    given = {name: value for name, value in arguments.items() if name in taken}
    return made.from_config(pipe.scheduler.config, **given)


def call_arguments(acceleration: Acceleration | None, sampler: str) -> dict[str, Any]:
    """What of an acceleration's arguments the pipeline's call takes, not its scheduler: `eta` of TCD and DDIM."""
    if acceleration is None or sampler != acceleration.scheduler or "eta" not in acceleration.arguments:
        return {}
    return {"eta": acceleration.arguments["eta"]}


def declared(text: str, terms: Sequence[str]) -> tuple[str, RunSettings]:
    """`lcm-of-mine=lcm`: (term, how its family is run), for an accelerator that neither its name nor the registry tells.

    Raises UsageError for a term that is not in the expression, or a family that is not known.
    """
    term, _, name = text.rpartition("=")
    if term not in terms:
        raise UsageError(
            f"accelerator {text!r}: expected TERM=FAMILY with a term of the expression: {', '.join(terms)}"
        )
    family = next((family for family in FAMILIES if family.name == name), None)
    if family is None:
        known = ", ".join(family.name for family in FAMILIES)
        raise UsageError(f"accelerator {text!r}: no family {name!r}: expected one of {known}")
    return term, family.run(None)


def acceleration_of(run: RunSettings, source: str) -> Acceleration:
    """How an accelerator is drawn, from its run settings: the smallest guidance scale they allow.

    Raises UsageError when the settings name no scheduler.
    """
    if run.scheduler is None:
        raise UsageError(f"{source} says that it accelerates, but not with which scheduler: name one")
    guidance = run.guidance_min if run.guidance_min is not None else 1.0
    timesteps = tuple(run.extra.get("timesteps", ()))
    return Acceleration(run.scheduler, dict(run.scheduler_args), guidance, timesteps, run.steps, source)
