"""The paper's Figure 3 (arXiv 2311.05556) as a function: base, style and combination, drawn at few and at many steps.

The rule: everything a number depends on is in the plan that comes back with it.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorahub.algebra.adapter import Adapter
from lorahub.errors import UsageError
from lorahub.validate.base_model import base_model, pixels_of
from lorahub.validate.cells import Cell, Generation, Picture, Plan, Score
from lorahub.validate.drawing import Progress, Session, default_guidance
from lorahub.validate.fitting import Fit
from lorahub.validate.judges import Judges, find_judges
from lorahub.validate.planning import figure
from lorahub.validate.samplers import fitting_names, scheduler
from lorahub.validate.scores import Scorer

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from lorahub.validate.base_model import Given


@dataclass(frozen=True)
class Term:
    """One term of an expression: the operand's name, its weight, the adapter, and whether it is an accelerator."""

    name: str
    weight: float
    adapter: Adapter
    accelerates: bool = False


@dataclass
class Drawing:
    """A pipeline at its place, ready to draw and score any cell; what `generate` and a search over λ share."""

    session: Session
    plan: Plan
    scorer: Scorer
    base: str
    cells: tuple[Cell, ...]

    def draw(self, cells: Sequence[Cell], progress: Progress | None = None) -> dict[Cell, tuple[Picture, ...]]:
        """The pictures of each cell."""
        drawn: dict[Cell, list[Picture]] = {cell: [] for cell in cells}
        for picture in self.session.draw(tuple(drawn), progress):
            drawn[picture.cell].append(picture)
        return {cell: tuple(pictures) for cell, pictures in drawn.items()}


def open_drawing(
    base: Given,
    terms: Sequence[Term],
    plan: Plan,
    folder: Path,
    *,
    device: str = "auto",
    resume: bool = True,
    judges: Judges | None = None,
) -> Drawing:
    """The pipeline loaded and fitted to the memory, the plan filled in, the cells decided; nothing is drawn.

    Raises UsageError when the plan, the terms and the pipeline do not fit together, and what `load_pipeline` raises.
    """
    if not terms:
        raise UsageError("expected at least one term to draw with")
    if any(term.accelerates for term in terms) and plan.acceleration is None:
        raise UsageError("a term accelerates, but the plan does not say how it is drawn")
    held = base_model(base, device=device, pixels=pixels_of(plan))
    pipe, fit = held.loaded
    plan = _filled(pipe, plan)
    accelerators = [term.name for term in terms if term.accelerates]
    weights: dict[str, float] = {}
    for term in terms:
        weights[term.name] = weights.get(term.name, 0.0) + term.weight
    drawn = figure(plan, weights, accelerators, plan.guidance or 0.0)
    for cell in drawn.cells:
        scheduler(pipe, cell.sampler, plan.acceleration)  # a sampler that does not fit is said before hours of drawing
    session = Session(pipe, plan, {term.name: term.adapter for term in terms}, folder, fit, resume)
    scorer = Scorer(plan, judges or find_judges(), drawn.reference, drawn.base_reference)
    return Drawing(session, plan, scorer, held.name, drawn.cells)


def generate(
    base: Given,
    terms: Sequence[Term],
    plan: Plan,
    folder: Path,
    *,
    device: str = "auto",
    resume: bool = True,
    judges: Judges | None = None,
    progress: Progress | None = None,
) -> Generation:
    """Draw and score every cell of the plan.

    base: a diffusers folder, a single file, a Hub id, a live pipeline, which is left as it came, or a BaseModel, which has
    a device of its own. folder: where the pictures go, one PNG each; with `resume`, those that were drawn before with the
    same settings are taken.
    judges: networks that score, of `judges.find_judges`. progress: (pictures done, pictures in all).
    Raises what `open_drawing`, `Session.draw` and `attach` raise.
    """
    drawing = open_drawing(base, terms, plan, folder, device=device, resume=resume, judges=judges)
    fit = drawing.session.fit
    if fit.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(fit.device)
    cells = drawing.draw(drawing.cells, progress)
    return gathered(drawing, cells, drawing.scorer.score(cells))


def gathered(drawing: Drawing, cells: Mapping[Cell, Sequence[Picture]], scores: Sequence[Score]) -> Generation:
    """What was drawn and scored, with what it cost."""
    fit = drawing.session.fit
    return Generation(
        plan=drawing.plan,
        base=drawing.base,
        pipeline=type(drawing.session.pipe).__name__,
        pictures=tuple(picture for pictures in cells.values() for picture in pictures),
        scores=tuple(scores),
        reference=drawing.scorer.reference,
        base_reference=drawing.scorer.base_reference,
        placement=_placement(fit),
        peak_memory=peak_memory(fit.device),
        seconds_per_step=_pace(cells),
    )


def peak_memory(device: str) -> int | None:
    """Most bytes in use so far: of tensors on a GPU, of the whole process on the CPU; None elsewhere."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return None


def _filled(pipe: DiffusionPipeline, plan: Plan) -> Plan:
    guidance = default_guidance(pipe) if plan.guidance is None else plan.guidance
    return replace(plan, samplers=fitting_names(pipe, plan.samplers), guidance=guidance)


def _placement(fit: Fit) -> Mapping[str, Any]:
    device = torch.cuda.get_device_name(fit.device) if fit.device.startswith("cuda") else "CPU"
    return fit.to_json() | {"name": device, "threads": torch.get_num_threads()}


def _pace(cells: Mapping[Cell, Sequence[Picture]]) -> dict[str, float]:
    """By row, from its cells with most steps, where what does not depend on the steps weighs least."""
    longest: dict[str, Cell] = {}
    for cell in cells:
        if cell.row not in longest or cell.steps > longest[cell.row].steps:
            longest[cell.row] = cell
    seconds: Callable[[Cell], float] = lambda cell: sum(p.seconds for p in cells[cell]) / len(cells[cell])  # noqa: E731
    return {row: seconds(cell) / cell.steps for row, cell in longest.items()}
