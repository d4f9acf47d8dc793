"""Which adapters of the registry go with one: all of its base, ranked by what records and sketches tell. No weights are read."""

from __future__ import annotations

from dataclasses import dataclass

from lorahub.errors import PartialError
from lorahub.workspace.compatibility import SEVERITIES, Finding, check, check_lengths, closeness, verdict
from lorahub.workspace.core import Workspace
from lorahub.workspace.errors import translated
from lorahub.workspace.profiles import of_record, profile
from lorahub.workspace.sketch import KIND, cosines


@dataclass(frozen=True)
class Partner:
    """One adapter to add. `cosine` is estimated from sketches; it and the norms are None where none are recorded."""

    reference: str
    kind: str
    should: str
    cosine: float | None
    norm: float | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Partners:
    """The adapters of the same base, those that go best first; `unsketched` of them have no sketch."""

    reference: str
    base: str
    partners: tuple[Partner, ...]
    unsketched: int


def partners(workspace: Workspace, reference: str, *, base: str | None = None, limit: int | None = None) -> Partners:
    """The newest version of every adapter that goes with the one named: first what nothing speaks against, and of these
    those whose weights point elsewhere.

    Raises PartialError when several bases are possible, what `profile` raises.
    """
    mine = profile(workspace, reference)
    possible = (base,) if base is not None and base in (*mine.bases, base) else mine.bases
    if len(possible) != 1:
        what = f"may be for {' or '.join(possible)}: say which with --base" if possible else "has a base not listed"
        raise PartialError(f"{reference} {what}")
    with translated():
        names, norms, data = workspace.registry.sketches(KIND, possible[0])
        known = {name: (norm, datum) for name, norm, datum in zip(names, norms, data, strict=True)}
        adapters = workspace.registry.list(base=possible[0])
    own = _own(workspace, reference)
    angles: dict[str, float] = {}
    if own in known:
        angles = dict(zip(names, map(float, cosines(known[own][1], data)), strict=True))
    found = []
    for adapter in adapters:
        record = adapter.latest
        if own is not None and own.partition(":")[0] == record.name:
            continue
        norm = known[record.reference][0] if record.reference in known else None
        pair = (mine, of_record(record.reference, record, norm))
        shares = dict.fromkeys((reference, record.reference), 1.0)
        findings = [*_refused(pair[1].refused, record.reference), *check(pair, shares), *check_lengths(pair, shares)]
        cosine = angles.get(record.reference)
        if cosine is not None:
            findings += closeness((reference, record.reference), cosine)
        found.append(Partner(record.reference, record.kind, verdict(findings), cosine, norm, tuple(findings)))
    found.sort(key=_order)
    lacking = sum(partner.cosine is None for partner in found)
    return Partners(reference, possible[0], tuple(found[:limit]), lacking)


def _own(workspace: Workspace, reference: str) -> str | None:
    from lorahub.references import find

    record = find(reference, workspace).record
    return None if record is None else record.reference


def _refused(reasons: tuple[str, ...], reference: str) -> list[Finding]:
    return [Finding("vectors", "error", f"{reference} cannot be added: {reason}", (reference,)) for reason in reasons]


def _order(partner: Partner) -> tuple[int, int, float, str]:
    worst = max((SEVERITIES.index(finding.severity) for finding in partner.findings), default=0)
    angle = 1.0 if partner.cosine is None else abs(partner.cosine)
    return worst, sum(finding.severity == "warning" for finding in partner.findings), round(angle, 1), partner.reference
