"""A report as one HTML page that needs nothing else: no network, no other file.

The rule: all text is escaped by the templates; the same report gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from lorahub.files.store import replacing, write_text
from lorahub.validate import plots
from lorahub.validate.cells import Generation
from lorahub.validate.finding import Finding, Severity
from lorahub.validate.page_figure import Figure, draw_figure
from lorahub.validate.report import Report

MARKS = {Severity.PASS: "✓", Severity.WARNING: "⚠", Severity.INCONCLUSIVE: "?", Severity.FAIL: "✗"}
_TEXTS = {
    Severity.PASS: ("Pass", "Every check passed."),
    Severity.WARNING: ("Pass with warnings", "Nothing failed. Read the warnings before you use it."),
    Severity.INCONCLUSIVE: ("Inconclusive", "Something could not be judged, so this is not a pass."),
    Severity.FAIL: ("Fail", "At least one check failed: do not use it as it is."),
}


def write_page(report: Report, path: str | Path) -> Path:
    """Write `render` to a file, whole or not at all; one that is there is replaced. Returns the path.

    Raises NotFoundError for a picture that is no longer where it was drawn.
    """
    return write_text_page(render(report), path)


def write_text_page(text: str, path: str | Path) -> Path:
    """Write a page, whole or not at all; one that is there is replaced. Returns the path."""
    with replacing(Path(path), force=True) as temporary:
        write_text(temporary, text)
    return Path(path)


def render(report: Report) -> str:
    """The page as text: verdict, findings, pictures, plots, numbers, command, versions.

    Raises NotFoundError for a picture that is no longer where it was drawn.
    """
    bad = sorted((each for each in report.findings if each.severity is not Severity.PASS), key=_worst_first)
    facts, tables = _numbers(report.numbers)
    text, meaning = _TEXTS[report.verdict]
    return fill(
        "report.html",
        command=report.command,
        versions=report.versions,
        report=report,
        verdict={"mark": MARKS[report.verdict], "text": text, "meaning": meaning},
        marks=MARKS,
        files=list(report.files.items()),
        rows=bad,
        passes=[each for each in report.findings if each.severity is Severity.PASS],
        counts=_counts(bad),
        figure=_figure(report),
        facts=facts,
        tables=tables,
    )


def fill(template: str, *, command: str, versions: Mapping[str, str], **context: Any) -> str:
    """A template of this package with its values; SVG of `plots` and marked text stay as they are."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["about"] = _about
    environment.globals["swatch"] = lambda index: Markup(plots.swatch(index))
    return environment.get_template(template).render(command=command, versions=sorted(versions.items()), **context)


def _figure(report: Report) -> Figure | None:
    return draw_figure(report.generation) if isinstance(report.generation, Generation) else None


def _worst_first(finding: Finding) -> int:
    return -finding.severity.badness


def _about(finding: Finding) -> str:
    return ", ".join(part for part in (finding.of, finding.layer) if part)


def _counts(findings: Sequence[Finding]) -> list[tuple[str, str, int]]:
    """(severity, its words, how many) of those that occur, worst first."""
    severities = [finding.severity for finding in findings]
    return [
        (severity.value, f"{MARKS[severity]} {severity.value}", severities.count(severity))
        for severity in reversed(Severity)
        if severity in severities
    ]


def _numbers(numbers: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[tuple[str, list[str], list[list[str]]]]]:
    """Measurements as (name, text), and those that are rows of numbers as (title, head, lines)."""
    facts, tables = [], []
    for name, value in numbers.items():
        title = name.replace("_", " ")
        if isinstance(value, Mapping) and value and all(isinstance(row, Mapping) for row in value.values()):
            columns = list(dict.fromkeys(column for row in value.values() for column in row))
            lines = [[key, *(_text(row.get(column)) for column in columns)] for key, row in value.items()]
            tables.append((title, ["name", *(column.replace("_", " ") for column in columns)], lines))
        elif isinstance(value, Mapping):
            facts += [(f"{title}: {key.replace('_', ' ')}", _text(inner)) for key, inner in value.items()]
        else:
            facts.append((title, _text(value)))
    return facts, tables


def _text(value: Any) -> str:
    """A measurement for people: four significant digits, a dash where there is none."""
    if value is None:
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
