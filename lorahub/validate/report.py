"""The answer of a validation: what was looked at, what each check found, and the verdict, which is that of the worst."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any, Protocol

from lorahub.validate.finding import Finding, Severity, worst

SCHEMA = 1
"""Version of `Report.to_json`; it rises when a field changes its meaning or goes away."""

PACKAGES = ("lorahub-toolkit", "torch", "diffusers", "peft", "transformers", "safetensors")
"""Whose versions a result may depend on."""


class Generation(Protocol):
    """Pictures and their scores, as `lorahub.validate.generating` makes them."""

    def to_json(self) -> dict[str, Any]:
        """Every cell and score, ready for `json.dumps`."""
        ...


@dataclass(frozen=True)
class Report:
    """The evidence for a verdict.

    subject: what was asked about, as it was written. expression: the combination it stands for (the subject itself where
    it is a single adapter). base: name of the base model, None where it stays open.
    numbers: measurements by name, JSON-ready, such as rank used and norm per layer.
    command: the command line that gives this report again. versions: package -> version.
    files: operand as the expression names it -> path of its file.
    """

    subject: str
    expression: str
    base: str | None
    findings: tuple[Finding, ...]
    numbers: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    generation: Generation | None = None
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=lambda: installed())
    files: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def verdict(self) -> Severity:
        """The worst of the findings; INCONCLUSIVE when there are none."""
        return worst(self.findings)

    def to_json(self) -> dict[str, Any]:
        """Every field by name, with `schema` and `verdict`."""
        return {
            "schema": SCHEMA,
            "verdict": self.verdict.value,
            "subject": self.subject,
            "expression": self.expression,
            "base": self.base,
            "files": dict(self.files),
            "findings": [finding.to_json() for finding in self.findings],
            "numbers": dict(self.numbers),
            "generation": None if self.generation is None else self.generation.to_json(),
            "command": self.command,
            "versions": dict(self.versions),
        }


def installed() -> dict[str, str]:
    """package -> version of those in `PACKAGES` that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
