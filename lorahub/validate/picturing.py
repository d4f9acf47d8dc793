"""What takes a base model: the denoiser's own answers, and pictures of what is wished for, with what they say."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lorahub.errors import UsageError
from lorahub.validate.cells import Acceleration, Generation, Plan, Wanted
from lorahub.validate.checks_sum import Part, parts_of
from lorahub.validate.finding import Finding, Severity
from lorahub.validate.opening import Subject

if TYPE_CHECKING:
    from lorahub.validate.base_model import BaseModel
    from lorahub.validate.generating import Term

_Drawn = TypeVar("_Drawn")


@dataclass(frozen=True)
class Pictures(Wanted):
    """What to draw, and with what to score it.

    sweep: spelled `lcm=0.6:1.2:0.2`.
    folder: pictures that lie there and were drawn with the same settings are taken, and new ones are kept; None keeps none
    for longer than the result is there, see `in_folder`.
    feature_model, clip_model, lpips_model: networks that some scores need, see `judges.find_judges`.
    """

    sweep: str | None = None
    folder: Path | None = None
    feature_model: str | Path | None = None
    clip_model: str | Path | None = None
    lpips_model: str | Path | None = None


def compare(subject: Subject, base_model: BaseModel) -> tuple[tuple[Finding, ...], Mapping[str, Any]]:
    """Findings on the denoiser's answers with the vector put on in three ways, and what a step takes in each.

    Raises what `load_pipeline` and `check_pipeline` raise.
    """
    from lorahub.validate.numeric import check_pipeline
    from lorahub.validate.pipelines import place

    if subject.adapter is None:
        return (Finding("numeric", Severity.INCONCLUSIVE, f"nothing can be put on: {subject.combined[1]}"),), {}
    pipe, fit = base_model.loaded
    if fit.offload != "none":
        reason = "cannot be judged: the memory holds only parts of the pipeline at a time"
        return (Finding("numeric", Severity.INCONCLUSIVE, reason),), {}
    if not base_model.is_live:
        place(pipe, fit)
    found = check_pipeline(pipe, subject.terms)
    return found.findings, found.to_json()


def compare_layers(subject: Subject) -> tuple[Finding, ...]:
    """Findings on every layer put on a random layer of its shape, in float32: it takes no base model."""
    from lorahub.validate.numeric_layers import check_layers

    if subject.adapter is None:
        return (Finding("numeric.layers", Severity.INCONCLUSIVE, f"nothing can be put on: {subject.combined[1]}"),)

    def advance(done: int, total: int) -> None:
        if subject.progress is not None:
            subject.progress(done, total, "layers")

    return check_layers(subject.terms, device=subject.device, progress=advance)


def draw(subject: Subject, base_model: BaseModel, wish: Pictures) -> tuple[Generation | None, tuple[Finding, ...]]:
    """The pictures and the findings on them; no pictures, and why, where the subject is no vector.

    Raises UsageError for a wish that does not fit, and what `generating.generate` raises.
    """
    from lorahub.validate.generating import generate
    from lorahub.validate.judges import find_judges
    from lorahub.validate.verdicts import judge

    if subject.adapter is None:
        return None, (Finding("pictures", Severity.INCONCLUSIVE, f"nothing can be drawn: {subject.combined[1]}"),)
    terms, plan = planned(subject, wish)
    judges = find_judges(wish.feature_model, wish.clip_model, wish.lpips_model)

    def advance(done: int, total: int) -> None:
        if subject.progress is not None:
            subject.progress(done, total, "pictures")

    def drawn(folder: Path) -> Generation:
        made = generate(base_model, terms, plan, folder, judges=judges, progress=advance)
        return replace(made, kept=wish.folder is not None)

    generation = in_folder(wish.folder, drawn)
    return generation, judge(generation)


def in_folder(folder: Path | None, draw: Callable[[Path], _Drawn]) -> _Drawn:
    """What `draw` makes of pictures in the folder; where that is None, in one that goes when what was made goes.

    One that goes is also removed when drawing fails or is interrupted, and when the interpreter ends.
    """
    if folder is not None:
        return draw(folder)
    passing = Path(tempfile.mkdtemp(prefix="lorahub-pictures-"))
    try:
        drawn = draw(passing)
    except BaseException:
        shutil.rmtree(passing, ignore_errors=True)
        raise
    weakref.finalize(drawn, shutil.rmtree, passing, ignore_errors=True)
    return drawn


def planned(subject: Subject, wish: Pictures) -> tuple[list[Term], Plan]:
    """The terms of a subject that is a vector, and what of them is drawn. Raises UsageError for a wish that does not fit."""
    from lorahub.validate.generating import Term
    from lorahub.validate.planning import parse_sweep

    fast = [part for part in parts_of(subject) or [] if part.profile.accelerates and part.weight > 0]
    terms = [
        Term(operand.reference, operand.weight, operand.adapter, any(part.of == operand.reference for part in fast))
        for operand in subject.operands
        if operand.adapter is not None
    ]
    return terms, Plan(
        **{each.name: getattr(wish, each.name) for each in fields(Wanted)},
        acceleration=_acceleration(fast[0]) if fast else None,
        sweep=parse_sweep(wish.sweep, [term.name for term in terms]) if wish.sweep else None,
    )


def _acceleration(part: Part) -> Acceleration:
    """How the first accelerator is drawn; what a second one would say is a finding."""
    from lorahub.validate.samplers import acceleration_of

    run = part.profile.run
    if run is None:
        raise UsageError(
            f"{part.profile.reference} accelerates, but nothing says with which scheduler: `lorahub edit` it"
        )
    return acceleration_of(run, part.profile.reference)
