"""What is known of an adapter before its weights are read: from the registry, else from the header of its file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorahub.files.inspecting import inspect
from lorahub.references import find
from lorahub.workspace.accelerators import EXCLUSIVE
from lorahub.workspace.errors import translated
from lorahub.workspace.facts import header_facts
from registry.records import RunSettings, VersionRecord

if TYPE_CHECKING:
    from lorahub.workspace.core import Workspace


@dataclass(frozen=True)
class Profile:
    """What is known of one adapter before its weights are read. `bases` are those it may be for; none: not listed."""

    reference: str
    bases: tuple[str, ...]
    format: str
    kind: str
    run: RunSettings | None
    refused: tuple[str, ...]
    """Why it is no vector at all."""
    norm: float | None
    """Frobenius norm of ΔW, if it is recorded."""

    @property
    def accelerates(self) -> bool:
        """Whether at most one of its like belongs into a sum."""
        return self.kind == "acceleration" or (self.run is not None and self.run.extra.get("exclusive") == EXCLUSIVE)


def profile(workspace: Workspace | None, reference: str) -> Profile:
    """What the registry, or else the header, tells of an adapter; the registry asked is the configured one if None."""
    located = find(reference, workspace)
    if located.record is not None and located.record.base is not None:
        return of_record(reference, located.record, _norm(workspace, located.record))
    described = inspect(located.path)
    facts = header_facts(described[0].path).facts
    record = located.record
    candidates = [set(part.detection.candidates) for part in described if part.detection.base is None]
    bases = {part.detection.base for part in described if part.detection.base}
    for possible in candidates:
        bases = (bases & possible if bases else possible) if possible else bases
    return Profile(
        reference,
        tuple(sorted(name for name in bases if name)),
        described[0].format,
        record.kind if record is not None else facts.kind,
        record.run if record is not None else facts.run,
        tuple(reason for part in described for reason in part.not_additive.values()),
        None,
    )


def of_record(reference: str, record: VersionRecord, norm: float | None) -> Profile:
    """What the registry tells of a version."""
    refused = tuple(line for line in record.evidence if line.startswith("not a vector: "))
    bases = (record.base,) if record.base else ()
    return Profile(reference, bases, record.format, record.kind, record.run, refused, norm)


def _norm(workspace: Workspace | None, record: VersionRecord) -> float | None:
    if workspace is None:
        return None
    with translated():
        norms = workspace.registry.norms(record.reference)
    return sum(float(norm) ** 2 for norm in norms.values()) ** 0.5 if norms else None
