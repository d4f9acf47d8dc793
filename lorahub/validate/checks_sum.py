"""What the parts of a combination do to one another, and whether a merged file's story of its making holds.

A file that was merged earlier is judged by the parents that its provenance names, as an expression is by its operands.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

from lorahub.algebra.geometry import layer_grams
from lorahub.errors import LorahubError, NotFoundError, VerificationError
from lorahub.validate.finding import Finding, failed, passed, unsure, warned
from lorahub.validate.opening import Operand, Subject
from lorahub.workspace import compatibility
from lorahub.workspace.accelerators import recognise
from lorahub.workspace.core import Workspace
from lorahub.workspace.profiles import Profile
from lorahub.workspace.replaying import rebuild


@dataclass(frozen=True)
class Part:
    """What goes into the vector: an operand, or a parent that a merged operand names. of: the operand."""

    profile: Profile
    weight: float
    of: str


def accelerators(subject: Subject) -> Iterator[Finding]:
    """At most one acceleration vector is in the sum."""
    yield from _of_parts(subject, {"accelerators"}, "no two acceleration vectors are combined")


def schedulers(subject: Subject) -> Iterator[Finding]:
    """All parts ask for one scheduler."""
    yield from _of_parts(subject, {"scheduler"}, "no two parts ask for different schedulers")


def guidance(subject: Subject) -> Iterator[Finding]:
    """One guidance scale suits all parts."""
    yield from _of_parts(subject, {"guidance"}, "no two parts ask for different guidance")


def _of_parts(subject: Subject, wanted: set[str], otherwise: str) -> Iterator[Finding]:
    parts = parts_of(subject)
    if parts is None:
        return
    named = {f"{number}": part for number, part in enumerate(parts)}
    profiles = [replace(part.profile, reference=key) for key, part in named.items()]
    found = compatibility.check(profiles, {key: part.weight for key, part in named.items()})
    doubts = [finding for finding in found if finding.check in wanted]
    labels = [part.profile.reference for part in parts]
    for doubt in doubts:
        yield warned(_renamed(doubt, labels))
    if not doubts:
        yield passed(otherwise)


def _renamed(doubt: compatibility.Finding, labels: list[str]) -> str:
    one, other = (labels[int(number)] for number in doubt.between)
    return doubt.message.replace(f"{doubt.between[0]} ", f"{one} ", 1).replace(f" {doubt.between[1]} ", f" {other} ", 1)


def parts_of(subject: Subject) -> list[Part] | None:
    """The operands, merged ones resolved into their parents; None while one of them cannot be read."""
    parts = []
    for operand in subject.operands:
        if operand.profile is None:
            return None
        told = [] if operand.declared else _parents(operand)
        parts += told or [Part(operand.profile, operand.weight, operand.reference)]
    return parts


def _parents(operand: Operand) -> list[Part]:
    """The parents that the file of an operand says it was merged from, as far as their names tell what they are."""
    told = operand.files[0].provenance
    parents, weights = told.get("parents"), told.get("weights")
    if not isinstance(parents, list) or len(parents) < 2 or operand.profile is None:
        return []
    if not isinstance(weights, list) or len(weights) != len(parents):
        weights = [1.0] * len(parents)
    base, found = str(told.get("base")), []
    for parent, weight in zip(parents, weights, strict=True):
        if not isinstance(parent, Mapping) or not isinstance(weight, (int, float)):
            return []
        metadata = parent.get("metadata")
        titles = metadata if isinstance(metadata, Mapping) else {}
        names = [
            str(parent.get("name", "")),
            *(str(titles[k]) for k in ("modelspec.title", "ss_output_name") if k in titles),
        ]
        known = recognise(names, base)
        run = known.run if known else None
        kind = "acceleration" if known else "other"
        profile = Profile(names[0], (base,), "", kind, run, (), None)
        found.append(Part(profile, float(weight) * operand.weight, operand.reference))
    return found


def balance(subject: Subject) -> Iterator[Finding]:
    """The operands can be added, and none drowns another, doubles it or cancels it."""
    if len(subject.operands) < 2:
        yield passed("there is one adapter")
        return
    if subject.adapter is None:
        yield failed(f"they cannot be added: {subject.combined[1]}")
        return
    loaded = [adapter for _, adapter in subject.terms]
    try:
        gram = sum(grams for grams in layer_grams(loaded, subject.device).values())
    except LorahubError as error:  # NaN: another check says where
        yield unsure(str(error))
        return
    norms = [max(float(gram[i, i]), 0.0) ** 0.5 for i in range(len(loaded))]  # type: ignore[index]
    shares = {operand.reference: operand.weight for operand in subject.operands}
    names = list(shares)
    profiles = [Profile(name, (), "", "other", None, (), norm) for name, norm in zip(names, norms, strict=True)]
    found = compatibility.check_lengths(profiles, shares)
    for i, one in enumerate(names):
        for j, other in enumerate(names[:i]):
            if norms[i] and norms[j]:
                cosine = float(gram[i, j]) / (norms[i] * norms[j])  # type: ignore[index]
                found += compatibility.closeness((other, one), cosine, shares[one] * shares[other])
    doubts = [finding for finding in found if finding.severity != "info"]
    for doubt in doubts:
        pair = "" if doubt.check == "norm" else f"{' and '.join(doubt.between)}: "  # who drowns whom is said
        yield warned(f"{pair}{doubt.message}")
    if not doubts:
        yield passed(f"norms {', '.join(f'{abs(shares[n]) * norm:.4g}' for n, norm in zip(names, norms, strict=True))}")


def provenance(subject: Subject) -> Iterator[Finding]:
    """What a merged file says of its making gives the same weights, to the bit, when it is done again."""
    for operand in subject.operands:
        finding = _replayed(subject, operand)
        yield replace(finding, of=operand.reference) if len(subject.operands) > 1 else finding


def _replayed(subject: Subject, operand: Operand) -> Finding:
    if any(file.header is None for file in operand.files):
        return unsure("the file cannot be read")
    recipe = operand.files[0].provenance.get("recipe")
    if not isinstance(recipe, Mapping):
        return passed("the file says nothing of its making, so there is nothing to replay")
    if "source" in recipe and not recipe.get("data_sha256"):
        return passed("it was trained, or made in memory from no other file, so there is nothing to replay")
    with ExitStack() as stack:
        workspace = subject.workspace
        if workspace is None:
            home = stack.enter_context(tempfile.TemporaryDirectory(prefix="lorahub-"))
            workspace = stack.enter_context(Workspace.open(home))
        name = operand.record.reference if operand.record is not None else str(operand.path)
        try:
            done = rebuild(workspace, name, parents=subject.parents)
        except NotFoundError as error:
            return unsure(f"it cannot be replayed: {error}")
        except VerificationError as error:
            return failed(str(error))
        except LorahubError as error:
            return unsure(f"it cannot be replayed: {error}")
    return passed(f"{done.expression} replayed: the same weights, sha256 {done.data_sha256[:12]}")
