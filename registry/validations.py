"""What checks found in a version. A check that runs again replaces its own findings, and no other's."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from registry.errors import InvalidError
from registry.models import ValidationRow
from registry.records import Validation
from registry.resolve import version_row
from registry.rows import validation_record

SEVERITIES = ("ok", "info", "warning", "error")


def record(session: Session, reference: str, findings: Iterable[Validation]) -> None:
    """Replace the findings of the checks that are named here; raises InvalidError for an unknown severity."""
    row = version_row(session, reference)
    findings = tuple(findings)
    for finding in findings:
        if finding.severity not in SEVERITIES:
            raise InvalidError(f"expected a severity among {', '.join(SEVERITIES)}, got {finding.severity!r}")
    checks = {finding.check for finding in findings}
    session.execute(delete(ValidationRow).where(ValidationRow.version_id == row.id, ValidationRow.check.in_(checks)))
    now = datetime.now(UTC)
    for finding in findings:
        session.add(
            ValidationRow(
                version_id=row.id,
                check=finding.check,
                severity=finding.severity,
                message=finding.message,
                layer=finding.layer,
                tool=finding.tool,
                at=finding.at or now,
            )
        )
    session.flush()


def find(session: Session, reference: str) -> tuple[Validation, ...]:
    """The findings on a version, in the order they were recorded."""
    row = version_row(session, reference)
    query = select(ValidationRow).where(ValidationRow.version_id == row.id).order_by(ValidationRow.id)
    return tuple(map(validation_record, session.scalars(query)))
