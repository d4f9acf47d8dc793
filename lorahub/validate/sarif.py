"""A report as SARIF 2.1.0 (OASIS), which code hosts and editors show: checks are rules, findings results.

Passes have kind `pass`, and what could not be judged `open`; both have level `none`, as the standard demands.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lorahub.files.store import replacing, write_text
from lorahub.validate.checks import CHECKS
from lorahub.validate.finding import Finding, Severity
from lorahub.validate.report import Report

SCHEMA_URI = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
VERSION = "2.1.0"
_KIND_AND_LEVEL = {
    Severity.PASS: ("pass", "none"),
    Severity.WARNING: ("fail", "warning"),
    Severity.INCONCLUSIVE: ("open", "none"),
    Severity.FAIL: ("fail", "error"),
}


def write_sarif(report: Report, path: str | Path) -> None:
    """Write `to_sarif` to a file, whole or not at all; one that is there is replaced."""
    with replacing(Path(path), force=True) as temporary:
        write_text(temporary, json.dumps(to_sarif(report), indent=2, allow_nan=False) + "\n")


def to_sarif(report: Report) -> dict[str, Any]:
    """One run with one result per finding; the rules are the checks that found something."""
    used = list(dict.fromkeys(finding.check for finding in report.findings))
    return {
        "$schema": SCHEMA_URI,
        "version": VERSION,
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "lorahub",
                        "semanticVersion": report.versions.get("lorahub-toolkit", "0.0.0"),
                        "rules": [_rule(name) for name in used],
                    }
                },
                "invocations": [{"executionSuccessful": True, "commandLine": report.command}],
                "results": [_result(finding, report, used) for finding in report.findings],
                "properties": {"verdict": report.verdict.value, "expression": report.expression, "base": report.base},
            }
        ],
    }


def _rule(name: str) -> dict[str, Any]:
    known = CHECKS.get(name)  # numeric checks and scores are in no table
    return {"id": name, "shortDescription": {"text": known.holds if known else name}}


def _result(finding: Finding, report: Report, rules: list[str]) -> dict[str, Any]:
    kind, level = _KIND_AND_LEVEL[finding.severity]
    result: dict[str, Any] = {
        "ruleId": finding.check,
        "ruleIndex": rules.index(finding.check),
        "kind": kind,
        "level": level,
        "message": {"text": finding.message},
        "locations": _locations(finding, report),
    }
    judged = {
        name: value for name, value in finding.to_json().items() if name in ("value", "limit") and value is not None
    }
    return {**result, "properties": judged} if judged else result


def _locations(finding: Finding, report: Report) -> list[dict[str, Any]]:
    """The file that the finding is about, or every file where it is about them together; with the layer."""
    paths = [path for name, path in report.files.items() if finding.of in (None, name)]
    logical = {"logicalLocations": [{"fullyQualifiedName": finding.layer}]} if finding.layer else {}
    return [
        {"physicalLocation": {"artifactLocation": {"uri": Path(path).absolute().as_uri()}}, **logical} for path in paths
    ]
