"""Can adapters be added, and should they: each answer with its reason.

The rule: what headers and the registry tell comes first, weights are read only when asked. Findings are `info`, `warning`
(it can be done, look at the result) or `error` (it cannot be done, or should not). Weights of a sum count: a norm is
that of the weighted adapter, and what is subtracted does not compete.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

from lorahub.workspace.profiles import Profile, profile
from registry.records import RunSettings

if TYPE_CHECKING:
    from lorahub.workspace.core import Workspace

Progress = Callable[[int, int], None]

SAME, NEAR = 0.95, 0.3
"""Cosines from which on two adapters are nearly the same, or share a good part of what they do."""
OVERLAP = 0.3
"""Share of a subspace, beyond what chance gives, from which on two adapters are said to write on the same directions."""
DROWNED = 10.0
"""Ratio of norms at which the smaller adapter hardly shows."""
SEVERITIES = ("info", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """One reason. `between` are the adapters it is about."""

    check: str
    severity: str
    message: str
    between: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """Measures of two adapters, from their weights; see `lorahub.workspace.overlap`."""

    first: str
    second: str
    cosine: float | None
    overlap_out: float
    overlap_in: float
    chance: float
    shared_layers: int
    norms: tuple[float, float]


@dataclass(frozen=True)
class Compatibility:
    """`can`: they are vectors of one space; None while several bases remain possible. `should`: yes, with care, or no."""

    references: tuple[str, ...]
    bases: tuple[str, ...]
    can: bool | None
    should: str
    findings: tuple[Finding, ...]
    pairs: tuple[Pair, ...]


def compatible(
    workspace: Workspace | None,
    references: Sequence[str],
    *,
    weights: Sequence[float] = (),
    base: str | None = None,
    read_weights: bool = True,
    progress: Progress | None = None,
) -> Compatibility:
    """Whether the adapters can be added, and should be, with these weights (1 each by default).

    base: that of all of them, where several are possible. read_weights: also measure angle, overlap and length.
    Raises NotFoundError and FileFormatError for one that cannot be read.
    """
    shares = dict(zip(references, weights or [1.0] * len(references), strict=True))
    profiles = [profile(workspace, reference) for reference in references]
    if base is not None:
        profiles = [replace(item, bases=(base,)) if base in item.bases else item for item in profiles]
    bases, findings = _space(profiles)
    pairs: tuple[Pair, ...] = ()
    fits = not any(finding.severity == "error" for finding in findings)
    if read_weights and fits and len(bases) == 1:
        from lorahub.workspace.overlap import measure  # imports torch

        pairs = measure(workspace, references, bases[0], progress=progress)
    can = None if fits and len(bases) > 1 else fits
    findings += check(profiles, shares)
    for pair in pairs:
        findings += _measured(pair, shares)
    if not pairs:
        findings += check_lengths(profiles, shares)
    return Compatibility(tuple(references), bases, can, verdict(findings), tuple(findings), pairs)


def check(profiles: Sequence[Profile], shares: Mapping[str, float]) -> list[Finding]:
    """What the facts say against a sum with these weights."""
    found = []
    for one, other in combinations([item for item in profiles if shares[item.reference] > 0], 2):
        both = (one.reference, other.reference)
        if one.accelerates and other.accelerates:
            total = shares[one.reference] + shares[other.reference]
            message = f"{both[0]} and {both[1]} are two acceleration vectors ({_family(one)}, {_family(other)})"
            if total > 1 + 1e-9:
                message += (
                    f", together at {total:g}: each already does the whole job; use one, or weights that sum to 1"
                )
                found.append(Finding("accelerators", "error", message, both))
            else:
                found.append(Finding("accelerators", "warning", f"{message}: a mean of the two is untested", both))
        if one.run is not None and other.run is not None:
            found += _contradictions(one.run, other.run, both)
    return found


def verdict(findings: Sequence[Finding]) -> str:
    """yes, with care, or no: by the worst finding."""
    worst = max((SEVERITIES.index(finding.severity) for finding in findings), default=0)
    return ("yes", "with care", "no")[worst]


def _space(profiles: Sequence[Profile]) -> tuple[tuple[str, ...], list[Finding]]:
    """The bases that all can have, and what stands in the way of adding them at all."""
    findings = [
        Finding("vectors", "error", f"{item.reference} cannot be added: {reason}", (item.reference,))
        for item in profiles
        for reason in item.refused
    ]
    listed = [item for item in profiles if item.bases]
    for one, other in combinations(listed, 2):
        if not set(one.bases) & set(other.bases):
            message = (
                f"{one.reference} is for {' or '.join(one.bases)}, {other.reference} for {' or '.join(other.bases)}: "
                "adapters of different bases live in different spaces"
            )
            findings.append(Finding("base", "error", message, (one.reference, other.reference)))
    unlisted = [item for item in profiles if not item.bases]
    for item in unlisted:
        other_kind = next((one for one in profiles if one.bases or one.format != item.format), None)
        if other_kind is not None:
            message = f"{item.reference} has a base that is not listed: it only adds to others of its own spelling"
            findings.append(Finding("base", "error", message, (item.reference, other_kind.reference)))
    if not listed:
        return ("unlisted",), findings
    common = set.intersection(*(set(item.bases) for item in listed))
    if len(common) > 1:
        names = tuple(item.reference for item in profiles)
        message = f"the layers fit {', '.join(sorted(common))} alike: say which with --base"
        findings.append(Finding("base", "warning", message, names))
    return tuple(sorted(common)), findings


def _contradictions(one: RunSettings, other: RunSettings, both: tuple[str, str]) -> list[Finding]:
    found = []
    if one.scheduler and other.scheduler and one.scheduler != other.scheduler:
        message = f"{both[0]} wants {one.scheduler}, {both[1]} {other.scheduler}"
        found.append(Finding("scheduler", "warning", message, both))
    low = max(_or(one.guidance_min, float("-inf")), _or(other.guidance_min, float("-inf")))
    high = min(_or(one.guidance_max, float("inf")), _or(other.guidance_max, float("inf")))
    if low > high:
        message = f"no guidance suits both: {both[0]} wants {_range(one)}, {both[1]} {_range(other)}"
        found.append(Finding("guidance", "warning", message, both))
    return found


def check_lengths(profiles: Sequence[Profile], shares: Mapping[str, float]) -> list[Finding]:
    """What the recorded norms say about a sum with these weights."""
    found = []
    for one, other in combinations(profiles, 2):
        if one.norm is not None and other.norm is not None:
            lengths = (abs(shares[one.reference]) * one.norm, abs(shares[other.reference]) * other.norm)
            found += _drowning((one.reference, other.reference), lengths)
    return found


def _measured(pair: Pair, shares: Mapping[str, float]) -> list[Finding]:
    both = (pair.first, pair.second)
    found = _drowning(both, (abs(shares[pair.first]) * pair.norms[0], abs(shares[pair.second]) * pair.norms[1]))
    if pair.cosine is not None:
        found += closeness(both, pair.cosine, shares[pair.first] * shares[pair.second])
    overlap = min(pair.overlap_out, pair.overlap_in)
    if overlap - pair.chance > OVERLAP and (pair.cosine is None or abs(pair.cosine) < NEAR):
        message = f"they read and write the same directions ({overlap:.0%} of the smaller one's) to different ends"
        found.append(Finding("overlap", "warning", message, both))
    return found


def closeness(both: tuple[str, str], cosine: float, sign: float = 1.0) -> list[Finding]:
    """What an angle means for a sum; sign: of the product of the weights."""
    along = cosine if sign >= 0 else -cosine
    if abs(cosine) >= SAME:
        what = "doubles its effect" if along > 0 else "cancels it"
        message = f"they are nearly the same adapter (cosine {cosine:.3f}): adding them {what}"
        return [Finding("cosine", "warning", message, both)]
    if along >= NEAR:
        return [Finding("cosine", "info", f"they reinforce one another (cosine {cosine:.3f}): lower the weights", both)]
    if along <= -NEAR:
        return [Finding("cosine", "warning", f"they cancel in part (cosine {cosine:.3f})", both)]
    return []


def _drowning(both: tuple[str, str], lengths: tuple[float, float]) -> list[Finding]:
    small, large = sorted(zip(lengths, both, strict=True))
    if small[0] == 0:
        return [Finding("norm", "warning", f"{small[1]} is zero: it changes nothing", both)]
    ratio = large[0] / small[0]
    if ratio < DROWNED:
        return []
    message = f"{large[1]} is {ratio:.3g} times as long as {small[1]} and will drown it: weigh it by {1 / ratio:.2g}"
    return [Finding("norm", "warning", message, both)]


def _family(item: Profile) -> str:
    return str(item.run.extra.get("family", "unknown family")) if item.run is not None else "unknown family"


def _range(run: RunSettings) -> str:
    low, high = run.guidance_min, run.guidance_max
    if low == high:
        return f"{low:g}" if low is not None else "any"
    return f"{_or(low, 0.0):g} and more" if high is None else f"{_or(low, 0.0):g} to {high:g}"


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
