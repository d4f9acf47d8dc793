"""What takes a base model: the denoiser's own answers, and pictures of what is wished for, with what they say."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorahub.errors import UsageError
from lorahub.validate.cells import Acceleration, Generation, Plan, Wanted
from lorahub.validate.checks_sum import Part, parts_of
from lorahub.validate.finding import Finding, Severity
from lorahub.validate.opening import Subject

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from lorahub.validate.generating import Term


@dataclass(frozen=True)
class Pictures(Wanted):
    """What to draw, and with what to score it.

    sweep: spelled `lcm=0.6:1.2:0.2`.
    folder: pictures that lie there and were drawn with the same settings are taken; None is a new temporary folder.
    accelerators: `TERM=FAMILY`, for accelerators that neither their names nor the registry tell, see `samplers.declared`.
    feature_model, clip_model: networks that some scores need, see `judges.find_judges`.
    """

    sweep: str | None = None
    folder: Path | None = None
    accelerators: tuple[str, ...] = ()
    feature_model: str | Path | None = None
    clip_model: str | Path | None = None


def compare(
    subject: Subject, base_model: str | Path | DiffusionPipeline
) -> tuple[tuple[Finding, ...], Mapping[str, Any]]:
    """Findings on the denoiser's answers with the vector put on in three ways, and what a step takes in each.

    Raises what `load_pipeline` and `check_pipeline` raise.
    """
    from lorahub.validate.numeric import check_pipeline
    from lorahub.validate.pipelines import load_pipeline, place

    if subject.adapter is None:
        return (Finding("numeric", Severity.INCONCLUSIVE, f"nothing can be put on: {subject.combined[1]}"),), {}
    pipe = base_model
    if isinstance(pipe, (str, Path)):
        pipe, fit = load_pipeline(pipe, subject.device, None)
        if fit.offload != "none":
            reason = "cannot be judged: the memory holds only parts of the pipeline at a time"
            return (Finding("numeric", Severity.INCONCLUSIVE, reason),), {}
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


def draw(
    subject: Subject, base_model: str | Path | DiffusionPipeline, wish: Pictures
) -> tuple[Generation | None, tuple[Finding, ...]]:
    """The pictures and the findings on them; no pictures, and why, where the subject is no vector.

    Raises UsageError for a wish that does not fit, and what `generating.generate` raises.
    """
    from lorahub.validate.generating import generate
    from lorahub.validate.judges import find_judges
    from lorahub.validate.verdicts import judge

    if subject.adapter is None:
        return None, (Finding("pictures", Severity.INCONCLUSIVE, f"nothing can be drawn: {subject.combined[1]}"),)
    terms, plan = planned(subject, wish)
    judges = find_judges(wish.feature_model, wish.clip_model)
    folder = folder_of(wish)

    def advance(done: int, total: int) -> None:
        if subject.progress is not None:
            subject.progress(done, total, "pictures")

    generation = generate(base_model, terms, plan, folder, device=subject.device, judges=judges, progress=advance)
    return generation, judge(generation)


def folder_of(wish: Pictures) -> Path:
    """Where the pictures go: they are kept, since a report says where each of them lies."""
    return wish.folder or Path(tempfile.mkdtemp(prefix="lorahub-pictures-"))


def planned(subject: Subject, wish: Pictures) -> tuple[list[Term], Plan]:
    """The terms of a subject that is a vector, and what of them is drawn. Raises UsageError for a wish that does not fit."""
    from lorahub.validate.generating import Term
    from lorahub.validate.planning import parse_sweep
    from lorahub.validate.samplers import declared

    said = dict(declared(text, [operand.reference for operand in subject.operands]) for text in wish.accelerators)
    fast = [part for part in parts_of(subject) or [] if part.profile.accelerates and part.weight > 0]
    terms = [
        Term(operand.reference, operand.weight, operand.adapter, _is(operand.reference, fast, said))
        for operand in subject.operands
        if operand.adapter is not None
    ]
    return terms, Plan(
        **{each.name: getattr(wish, each.name) for each in fields(Wanted)},
        acceleration=next(iter(said.values()), None) or (_acceleration(fast[0]) if fast else None),
        sweep=parse_sweep(wish.sweep, [term.name for term in terms]) if wish.sweep else None,
    )


def _is(reference: str, fast: Sequence[Part], said: Collection[str]) -> bool:
    return reference in said or any(part.of == reference for part in fast)


def _acceleration(part: Part) -> Acceleration:
    """How the first accelerator is drawn; what a second one would say is a finding."""
    from lorahub.validate.samplers import acceleration_of

    run = part.profile.run
    if run is None:
        raise UsageError(
            f"{part.profile.reference} accelerates, but nothing says with which scheduler: `lorahub edit` it"
        )
    return acceleration_of(run, part.profile.reference)
