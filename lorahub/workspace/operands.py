"""What `combine` checks before it adds: the facts about its operands, weights unread.

The rule: nothing here opens a registry unless an operand comes from one.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from lorahub.algebra.recipe import Recipe, coefficients
from lorahub.errors import ConflictError, FileFormatError
from lorahub.files.paths import PICKLE_SUFFIXES
from lorahub.references import configured
from lorahub.workspace.compatibility import Finding, check, check_lengths
from lorahub.workspace.profiles import Profile, profile


def check_operands(recipe: Recipe, *, force: bool = False) -> list[Finding]:
    """What headers and the registry say against the sum that a recipe is; sources that have neither are passed over.

    force: findings that should stop the sum are returned like warnings.
    Raises ConflictError for what should stop it.
    """
    shares: dict[str, float] = {}
    profiles: list[Profile] = []
    terms = coefficients(recipe)
    with configured() if any(source.reference for _, source in terms) else nullcontext() as workspace:
        for weight, source in terms:
            if weight == 0 or not source.path or Path(source.path).suffix in PICKLE_SUFFIXES:
                continue
            try:
                found = profile(workspace, source.reference or source.path)
            except FileFormatError:  # text embeddings alone, for example
                continue
            label = source.name if source.name not in shares else source.path
            shares[label] = weight
            profiles.append(replace(found, reference=label))
    findings = [*check(profiles, shares), *check_lengths(profiles, shares)]
    bad = next((finding for finding in findings if finding.severity == "error"), None)
    if bad is not None and not force:
        raise ConflictError(f"{bad.message} (or combine them all the same with --force)")
    return [finding for finding in findings if finding.severity in ("warning", "error")]
