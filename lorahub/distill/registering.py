"""Enter a distilled vector into the registry, as what it is and with how to run it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lorahub.distill.settings import Settings
from lorahub.errors import UsageError
from lorahub.workspace import accelerators
from registry.records import RunSettings

if TYPE_CHECKING:
    from lorahub.distill.trainer import Distilled
    from lorahub.workspace.core import Workspace


def register(workspace: Workspace, made: Distilled, name: str) -> str:
    """Register the file of a run as the next version of `name`, an acceleration vector; its reference.

    Raises UsageError when the run wrote no file, and what adding a file raises.
    """
    from lorahub.workspace.adding import add

    if made.saved is None:
        raise UsageError(f"nothing to register as {name}: the run wrote no file")
    with workspace.transaction():
        (added,) = add(workspace, [made.saved.path], name=name, kind="acceleration").added
        workspace.registry.edit(added.reference, run=run_settings(made.settings))
    return added.reference


def run_settings(settings: Settings) -> RunSettings:
    """How to draw with what the settings make: as with the published family of the mode, on the grid it was trained on."""
    family = "tcd" if settings.mode == "tcd" else "lcm"
    run = next(each for each in accelerators.FAMILIES if each.name == family).run(None)
    arguments = {**run.scheduler_args, "original_inference_steps": settings.solver_steps}
    if family == "lcm":
        arguments["timestep_scaling"] = settings.timestep_scaling
    high = min(run.steps_max or settings.solver_steps, settings.solver_steps)
    return replace(
        run,
        scheduler_args=arguments,
        steps=min(run.steps or high, high),
        steps_min=1,
        steps_max=high,
        extra={**run.extra, "distilled": settings.training()},
    )
