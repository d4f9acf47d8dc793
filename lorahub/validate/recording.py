"""The findings of a report, kept with a version of the registry, where `lorahub show` prints them."""

from __future__ import annotations

from collections.abc import Iterable

from lorahub.validate.finding import Finding, Severity, worst
from lorahub.workspace.core import Workspace
from lorahub.workspace.errors import translated
from lorahub.workspace.facts import signed
from registry.records import Validation

VERDICT = "verdict"
"""The check under which the verdict of a whole validation is kept."""
_SEVERITIES = {
    Severity.PASS: "ok",
    Severity.WARNING: "warning",
    Severity.INCONCLUSIVE: "warning",  # the registry's `info` would read as harmless
    Severity.FAIL: "error",
}


def record(workspace: Workspace, reference: str, findings: Iterable[Finding], *, whole: bool) -> bool:
    """Replace what these checks found in the version before; False where the registry cannot be written.

    whole: all checks were run, so that their verdict is that of the version.
    """
    if workspace.registry.read_only:
        return False
    kept = list(findings)
    rows = [_as_row(finding) for finding in kept]
    if whole:
        verdict = worst(kept)
        rows.append(Validation(check=VERDICT, severity=_SEVERITIES[verdict], message=verdict.value))
    with translated():
        workspace.registry.record_validations(reference, signed(rows))
    return True


def _as_row(finding: Finding) -> Validation:
    doubt = "inconclusive: " if finding.severity is Severity.INCONCLUSIVE else ""
    return Validation(
        check=finding.check,
        severity=_SEVERITIES[finding.severity],
        message=doubt + finding.message,
        layer=finding.layer,
    )
