"""The table of static checks, and how they are run: a check that finds nothing to judge is inconclusive, never a pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from lorahub.errors import UsageError
from lorahub.validate import checks_file, checks_sum, checks_vector, claims
from lorahub.validate.based import known
from lorahub.validate.finding import Finding, Severity, unsure
from lorahub.validate.in_comfyui import comfyui
from lorahub.validate.in_diffusers import diffusers
from lorahub.validate.opening import File, Subject

Look = Callable[[Subject], Iterable[Finding]]


@dataclass(frozen=True)
class Check:
    """What is looked at, and what holds when the check passes, in one line."""

    look: Look
    holds: str


def _of(look: Look) -> Check:
    """A check of the whole, described by its docstring."""
    return Check(look, (look.__doc__ or "").strip())


def _each(look: Callable[[File], Iterable[Finding]]) -> Check:
    """A check of every file, whose findings name the operand where there are several."""

    def all_files(subject: Subject) -> Iterator[Finding]:
        for file in subject.files:
            for finding in look(file):
                yield replace(finding, of=file.of) if len(subject.operands) > 1 else finding

    return Check(all_files, (look.__doc__ or "").strip())


def _consumer(name: str, look: Callable[[File], Iterable[Finding]]) -> Check:
    """A check of what another program makes of every file: a failure where that program is what the file is for."""
    check = _each(look)

    def judged(subject: Subject) -> Iterator[Finding]:
        for finding in check.look(subject):
            bad = finding.severity is Severity.WARNING and name in subject.targets
            yield replace(finding, severity=Severity.FAIL) if bad else finding

    return Check(judged, check.holds)


CONSUMERS: Mapping[str, Callable[[File], Iterable[Finding]]] = {"diffusers": diffusers, "comfyui": comfyui}
"""Programs that load adapters -> the check of what they make of a file."""

CHECKS: Mapping[str, Check] = {
    "readable": _each(checks_file.readable),
    "vector": _each(checks_file.vector),
    "orphans": _each(checks_file.orphans),
    "finite": _each(checks_file.finite),
    "dtype": _each(checks_file.dtypes),
    "spellings": _each(checks_file.spellings),
    "hashes": _each(checks_file.hashes),
    "base": _each(checks_vector.base),
    "alpha": _each(checks_vector.alpha),
    "coverage": _of(checks_vector.coverage),
    "rank": _of(checks_vector.rank),
    "zero": _of(checks_vector.zero),
    "strength": _of(checks_vector.strength),
    "accelerators": _of(checks_sum.accelerators),
    "schedulers": _of(checks_sum.schedulers),
    "guidance": _of(checks_sum.guidance),
    "balance": _of(checks_sum.balance),
    **{name: _consumer(name, look) for name, look in CONSUMERS.items()},
    "provenance": _of(checks_sum.provenance),
    "claims": _of(claims.claims),
}
"""name -> check. Names are what --only takes, SARIF calls rules, and the registry keeps."""


def chosen(only: Collection[str], *, claimed: bool) -> tuple[str, ...]:
    """The names of the checks to run; `claims` is one of them where something is claimed.

    Raises UsageError for a name that is not in the table, or `claims` without a claim.
    """
    unknown = [name for name in only if name not in CHECKS]
    if unknown:
        raise UsageError(f"no check {unknown[0]!r}: expected one of {', '.join(CHECKS)}")
    if "claims" in only and not claimed:
        raise UsageError("the check claims needs what is claimed: --against EXPRESSION")
    return tuple(name for name in CHECKS if (not only or name in only) and (name != "claims" or claimed))


def check_targets(names: Collection[str]) -> None:
    """Raises UsageError for a consumer that is not in the table."""
    unknown = [name for name in names if name not in CONSUMERS]
    if unknown:
        raise UsageError(f"no consumer {unknown[0]!r}: expected one of {', '.join(CONSUMERS)}")


def run(subject: Subject, names: Iterable[str]) -> tuple[Finding, ...]:
    """What these checks find, in their order."""
    findings: list[Finding] = []
    for name in names:
        found = list(CHECKS[name].look(subject)) or [unsure(f"cannot be judged: {_reason(subject)}")]
        findings += [replace(finding, check=name) for finding in found]
    return tuple(findings)


def _reason(subject: Subject) -> str:
    refused = [file.refused for file in subject.files if file.refused]
    why = refused or [text for text in (subject.combined[1], subject.measured[1]) if text]
    if why:
        return why[0]
    unlisted = subject.adapter is not None and known(subject.adapter.base) is None
    return "the base is not listed" if unlisted else "no layer does anything"
