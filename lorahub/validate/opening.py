"""What is validated, opened as far as it can be: files by their headers, adapters where arithmetic takes them.

The rule: a file that nobody can read, or that is no vector, is described here with the reason; only a name that leads
nowhere is an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorahub import bases, header
from lorahub.algebra.adapter import Adapter
from lorahub.bases.detect import Detection
from lorahub.bases.model import Base
from lorahub.errors import FileFormatError, LorahubError
from lorahub.expression import parse as parse_expression
from lorahub.files.inspecting import PROVENANCE_KEY
from lorahub.files.paths import PICKLE_SUFFIXES, find_weights, read_config
from lorahub.formats.layout import Layout, parse, seen
from lorahub.loading import load, load_all
from lorahub.references import find
from lorahub.validate.based import describe_pipeline, known
from lorahub.validate.measuring import Measured, measure
from lorahub.validate.samplers import declared
from lorahub.workspace.profiles import Profile, profile

if TYPE_CHECKING:
    from lorahub.validate.base_model import BaseModel
    from lorahub.workspace.core import Workspace
    from registry import VersionRecord
    from registry.records import RunSettings

Progress = Callable[..., None]
"""(done, in all[, of what; layers if it is not said])."""


@dataclass(frozen=True, eq=False)
class File:
    """One file of an operand. Without a header or a layout, `refused` says why."""

    path: Path
    of: str
    header: header.Header | None
    config: Mapping[str, object] | None
    layout: Layout | None
    detection: Detection | None
    refused: str

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What it says of its making; empty when it says nothing that can be read."""
        try:
            told = json.loads(self.header.metadata.get(PROVENANCE_KEY, "null")) if self.header else None
        except ValueError:
            return {}
        return told if isinstance(told, dict) else {}

    @property
    def base(self) -> Base | None:
        """The base that its layers decide, if they do."""
        name = self.detection.base if self.detection else None
        return known(name) if name else None


@dataclass(frozen=True, eq=False)
class Operand:
    """One term of the expression. Without an adapter, `refused` says why it is no vector."""

    reference: str
    weight: float
    path: Path
    files: tuple[File, ...]
    adapter: Adapter | None
    refused: str
    record: VersionRecord | None
    profile: Profile | None
    """What the registry or the header tells before weights are read; None for a file that cannot be read."""
    declared: bool = False
    """Whether the caller said that it accelerates, and how."""


@dataclass(eq=False)
class Subject:
    """What is validated: the operands of an expression, and the vector that they make where they all are vectors.

    claims: an expression that the vector is said to equal. targets: consumers that must load every file whole.
    parents: more places where the sources of a merged file may lie. asked: a base named by the caller.
    """

    text: str
    operands: tuple[Operand, ...]
    workspace: Workspace | None = None
    asked: str | None = None
    claims: str | None = None
    targets: Collection[str] = ()
    parents: tuple[Path, ...] = ()
    device: str = "cpu"
    progress: Progress | None = None

    @property
    def files(self) -> tuple[File, ...]:
        return tuple(file for operand in self.operands for file in operand.files)

    @property
    def terms(self) -> tuple[tuple[float, Adapter], ...]:
        """(weight, adapter) of the operands that are vectors."""
        return tuple((operand.weight, operand.adapter) for operand in self.operands if operand.adapter is not None)

    @cached_property
    def combined(self) -> tuple[Adapter | None, str]:
        """(the vector, why there is none)."""
        for operand in self.operands:
            if operand.adapter is None:
                return None, operand.refused
        try:
            parts = [weight * adapter for weight, adapter in self.terms]
            return sum(parts[1:], start=parts[0]), ""
        except LorahubError as error:
            return None, str(error)

    @property
    def adapter(self) -> Adapter | None:
        return self.combined[0]

    @property
    def base(self) -> str | None:
        """The base model of the vector, or else the one that the first file's layers decide."""
        if self.adapter is not None:
            return self.adapter.base
        return self.asked or next((file.base.name for file in self.files if file.base), None)

    @cached_property
    def measured(self) -> tuple[Measured | None, str]:
        """(rank used and norm of every layer of the vector, why they cannot be had)."""
        if self.adapter is None:
            return None, self.combined[1]
        try:
            return measure(self.adapter, device=self.device, progress=self.progress), ""
        except LorahubError as error:
            return None, str(error)


def open_subject(
    text: str,
    *,
    workspace: Workspace | None = None,
    base: str | None = None,
    base_model: BaseModel | None = None,
    accelerators: Collection[str] = (),
    allow_pickle: bool = False,
) -> Subject:
    """The operands of an expression, or the one adapter that `text` names, opened.

    base_model: tells the layers of a base that is not listed, where none was named and the files fit no listed one.
    accelerators: `TERM=FAMILY`, for those that neither their names nor the registry tell, see `samplers.declared`.
    Raises UsageError for a malformed expression or accelerator, NotFoundError, NetworkError and AuthError for what cannot
    be had, and what loading the base model raises.
    """
    opened = _open_subject(text, workspace, base, allow_pickle)
    if base is None and base_model is not None and any(file.layout and not file.base for file in opened.files):
        opened = _open_subject(text, workspace, describe_pipeline(base_model.loaded[0]), allow_pickle)
    said = dict(declared(each, [operand.reference for operand in opened.operands]) for each in accelerators)
    return replace(opened, operands=tuple(_accelerating(operand, said) for operand in opened.operands))


def _accelerating(operand: Operand, said: Mapping[str, RunSettings]) -> Operand:
    """The operand as the caller says that it is run, if they do."""
    if operand.reference not in said or operand.profile is None:
        return operand
    profile = replace(operand.profile, kind="acceleration", run=said[operand.reference])
    return replace(operand, profile=profile, declared=True)


def _open_subject(text: str, workspace: Workspace | None, base: str | None, allow_pickle: bool) -> Subject:
    weights: dict[str, float] = {}
    for term in parse_expression(text):
        weights[term.reference] = weights.get(term.reference, 0.0) + term.weight
    located = {reference: find(reference, workspace) for reference in weights}
    files = {name: tuple(_open(path, name, base) for path in find_weights(at.path)) for name, at in located.items()}
    loaded = _load(list(weights), base, allow_pickle)
    operands = []
    for name, weight in weights.items():
        adapter, refused = loaded[name]
        known = (
            None if adapter is None and any(file.layout is None for file in files[name]) else _profile(name, workspace)
        )
        at = located[name]
        operands.append(Operand(name, weight, at.path, files[name], adapter, refused, at.record, known))
    return Subject(text, tuple(operands), workspace, base)


def _open(path: Path, of: str, base: str | None) -> File:
    if path.suffix in PICKLE_SUFFIXES:
        return File(path, of, None, None, None, None, "a Python pickle has no header to look at: convert it first")
    described = config = None
    try:
        described = header.read(path)
        config = read_config(path)
        layout = parse(described.shapes, described.metadata, config)
    except FileFormatError as error:
        return File(path, of, described, config, None, None, str(error))
    detection = bases.detect(seen(layout), described.metadata)
    if base is not None and known(base) is not None and base != detection.base:
        said = detection.evidence if base in detection.candidates else (f"all of its layers exist in {base}",)
        detection = replace(detection, base=base, evidence=said)  # what does not fit is found layer by layer
    return File(path, of, described, config, layout, detection, "")


def _load(names: list[str], base: str | None, allow_pickle: bool) -> dict[str, tuple[Adapter | None, str]]:
    """The adapters together, so that one that fits several bases takes that of the others; failing that, each alone."""
    try:
        return {
            name: (adapter, "")
            for name, adapter in zip(names, load_all(names, base=base, allow_pickle=allow_pickle), strict=True)
        }
    except LorahubError:
        loaded: dict[str, tuple[Adapter | None, str]] = {}
    for name in names:
        try:
            loaded[name] = load(name, base=base, allow_pickle=allow_pickle), ""
        except LorahubError as error:
            loaded[name] = None, str(error)
    return loaded


def _profile(name: str, workspace: Workspace | None) -> Profile | None:
    try:
        return profile(workspace, name)
    except FileFormatError:
        return None
