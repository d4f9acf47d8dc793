"""Validate: open what is asked about, run the checks, record what they find, and answer with a report."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorahub.errors import UsageError
from lorahub.expression import quote, render
from lorahub.references import configured
from lorahub.validate import checks
from lorahub.validate.base_model import BaseModel, pixels_of
from lorahub.validate.opening import Subject, open_subject
from lorahub.validate.picturing import Pictures, compare, compare_layers, draw
from lorahub.validate.recording import record as keep
from lorahub.validate.report import Report

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from lorahub.validate.cells import Generation
    from lorahub.validate.finding import Finding


def validate(
    subject: str | Path,
    *,
    base: str | None = None,
    base_model: str | Path | DiffusionPipeline | None = None,
    base_config: str | Path | None = None,
    accelerators: Collection[str] = (),
    pictures: Pictures | None = None,
    numeric: bool = False,
    against: str | None = None,
    targets: Collection[str] = (),
    only: Collection[str] = (),
    parents: Collection[str | Path] = (),
    device: str = "cpu",
    record: bool = True,
    allow_pickle: bool = False,
    command: str = "",
    progress: Callable[..., None] | None = None,
) -> Report:
    """Whether an adapter, or the combination that an expression makes of several, may be used, with the evidence.

    subject: an expression, or whatever `lorahub.load` takes as a name. base: its base, where several fit.
    base_model: a diffusers folder, a single file, a Hub id or a live pipeline; its answers are compared
    with the vector put on at run time, fused and baked. base_config: a diffusers folder with the configuration that
    belongs to a single file. accelerators: `TERM=FAMILY` for those that neither their names nor the registry tell, such
    as `mine=lcm`. pictures: what is drawn with it and scored; without a folder of their own they are there for
    as long as the report's `generation` is.
    numeric: the same comparison layer by layer on random weights, which takes no base model.
    against: an expression that it is claimed to equal, compared layer by layer.
    targets: programs (`diffusers`, `comfyui`) that must load its files whole; else what they lose is a warning.
    only: names of checks to run. parents: where to look for the sources of a merged file, besides the registry.
    record: keep the findings with the version, where the subject is a name in the registry.
    progress: (done, in all, of what).
    Raises UsageError for a malformed expression or unknown check, NotFoundError, NetworkError or AuthError for an
    adapter that cannot be had. Damaged files raise nothing: they fail.
    """
    if pictures is not None and base_model is None:
        raise UsageError("pictures need a base model to draw with: --base-model")
    names = checks.chosen(only, claimed=against is not None)
    checks.check_targets(targets)
    text = quote(str(subject)) if isinstance(subject, Path) else subject
    device = resolved(device)
    held = None if base_model is None else BaseModel(base_model, device, pixels_of(pictures), base_config)
    with configured() as workspace:
        opened = open_subject(
            text, workspace=workspace, base=base, base_model=held, accelerators=accelerators, allow_pickle=allow_pickle
        )
        opened.claims, opened.targets, opened.parents = against, frozenset(targets), tuple(map(Path, parents))
        opened.device, opened.progress = device, progress
        findings = checks.run(opened, names)
        if numeric:
            findings += compare_layers(opened)
        answered, steps, drawn = _on(held, opened, pictures)
        findings += answered
        if record and workspace is not None and (version := _version(opened)) is not None:
            keep(workspace, version, findings, whole=not only)
        return _report(text, opened, findings, steps, drawn, command)


def _on(
    base_model: BaseModel | None, opened: Subject, pictures: Pictures | None
) -> tuple[tuple[Finding, ...], Mapping[str, Any], Generation | None]:
    """What the subject does to a base model: findings, what a step takes, and the pictures that were wished for."""
    if base_model is None:
        return (), {}, None
    findings, steps = compare(opened, base_model)
    if pictures is None:
        return findings, steps, None
    drawn, seen = draw(opened, base_model, pictures)
    return findings + seen, steps, drawn


def _report(
    text: str,
    opened: Subject,
    findings: tuple[Finding, ...],
    steps: Mapping[str, Any],
    drawn: Generation | None,
    command: str,
) -> Report:
    return Report(
        subject=text,
        expression=render([(operand.weight, quote(operand.reference)) for operand in opened.operands]),
        base=opened.base,
        findings=findings,
        numbers={**_numbers(opened), **steps},
        generation=drawn,
        command=command,
        files={operand.reference: str(operand.path) for operand in opened.operands},
    )


def resolved(device: str) -> str:
    """The device itself: `auto` is CUDA where torch finds it, else the CPU."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _version(subject: Subject) -> str | None:
    """The version of the registry that the subject is, if it is one alone and unscaled."""
    operand = subject.operands[0]
    alone = len(subject.operands) == 1 and operand.weight == 1
    return operand.record.reference if alone and operand.record is not None else None


def _numbers(subject: Subject) -> Mapping[str, Any]:
    """What was measured on the way; checks that were not run measured nothing."""
    measured = vars(subject).get("measured", (None, ""))[0]
    return {} if measured is None else measured.to_json()
