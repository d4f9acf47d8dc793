"""The adapters of the registry that are nearest to one by their weights, whatever their files look like.

Sketches choose the candidates, the weights decide: the cosines reported as exact come from the files. The rule: a registry
whose sketches are incomplete says so, and how many are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from lorahub.algebra.adapter import Adapter
from lorahub.algebra.geometry import gram
from lorahub.errors import LorahubError, UsageError
from lorahub.files.loading import load_path
from lorahub.loading import load_version
from lorahub.references import find
from lorahub.workspace.core import Workspace
from lorahub.workspace.errors import translated
from lorahub.workspace.sketch import KIND, cosines
from lorahub.workspace.sketching import sketch
from registry import Sketch, VersionRecord

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Match:
    """One neighbour. `cosine` is of the weights where `exact`, else estimated from sketches (off by 0.02 or so).

    `scale` is that of the neighbour along the one asked about: <a, b> / <a, a>, 0.5 for the same at half strength.
    """

    reference: str
    cosine: float
    exact: bool
    scale: float
    norm: float


@dataclass(frozen=True)
class Similar:
    """The nearest, best first. `compared` sketches were looked at; `unsketched` versions have none (see `refresh`)."""

    reference: str
    base: str
    norm: float
    matches: tuple[Match, ...]
    compared: int
    unsketched: int


@dataclass(frozen=True)
class Refreshed:
    """What `refresh` did: how many sketches were made, and the versions that cannot have one, with the reason."""

    made: int
    failed: tuple[tuple[str, str], ...]


def similar(
    workspace: Workspace,
    reference: str,
    *,
    limit: int = 10,
    least: float = 0.1,
    exact: bool = True,
    progress: Progress | None = None,
) -> Similar:
    """The registered adapters nearest to the one that `reference` (a registry name, a path) names.

    least: smallest cosine, in absolute value, that counts as near. exact: re-rank by the weights in the files; one that
    cannot be read keeps its estimate.
    Raises what `lorahub.load` raises, UsageError for an adapter that is zero.
    """
    adapter, record = _load(workspace, reference)
    mine = sketch(adapter)
    if mine.norm == 0:
        raise UsageError(f"{reference} is zero: nothing is similar to it")
    with translated():
        names, norms, data = workspace.registry.sketches(KIND, mine.base)
        lacking = len(workspace.registry.without_sketch(KIND))
    estimates = cosines(mine.data, data)
    order = [int(i) for i in np.argsort(-np.abs(estimates), kind="stable")]
    own = record.reference if record is not None else None
    near = [i for i in order if names[i] != own and abs(estimates[i]) >= least][: 2 * limit if exact else limit]
    matches = []
    for done, i in enumerate(near, 1):
        ratio = norms[i] / mine.norm
        guess = Match(names[i], float(estimates[i]), False, float(estimates[i]) * ratio, norms[i])
        matches.append(_exactly(workspace, adapter, guess) if exact else guess)
        if progress:
            progress(done, len(near))
    matches.sort(key=lambda match: -abs(match.cosine))
    return Similar(reference, mine.base, mine.norm, tuple(matches[:limit]), len(names), lacking)


def put_sketch(
    workspace: Workspace, record: VersionRecord, adapter: Adapter, *, norms: Mapping[str, float] | None = None
) -> Sketch:
    """Make the sketch of a registered version from its weights, and keep it; `norms` are those of its layers, if known."""
    made = sketch(adapter, norms=norms)
    with translated():
        workspace.registry.put_sketch(record.reference, made)
    return made


def refresh(workspace: Workspace, *, progress: Progress | None = None) -> Refreshed:
    """Sketch every version that has none, or one of another base than it has now; each is kept as soon as it is made."""
    with translated():
        todo = workspace.registry.without_sketch(KIND)
    failed: list[tuple[str, str]] = []
    for done, record in enumerate(todo, 1):
        try:
            put_sketch(workspace, record, load_version(workspace.path(record), record))
        except LorahubError as error:
            failed.append((record.reference, str(error)))
        if progress:
            progress(done, len(todo))
    return Refreshed(len(todo) - len(failed), tuple(failed))


def _load(workspace: Workspace, reference: str) -> tuple[Adapter, VersionRecord | None]:
    located = find(reference, workspace)
    if located.record is None:
        return load_path(located.path), None
    return load_version(located.path, located.record), located.record


def _exactly(workspace: Workspace, adapter: Adapter, guess: Match) -> Match:
    try:
        record = workspace.get(guess.reference)
        other = load_version(workspace.path(record), record)
        matrix = gram([adapter, other])
    except LorahubError:
        return guess
    mine, product, theirs = float(matrix[0, 0]), float(matrix[0, 1]), float(matrix[1, 1])
    if theirs <= 0:
        return Match(guess.reference, 0.0, True, 0.0, 0.0)
    cosine = max(-1.0, min(1.0, product / (mine * theirs) ** 0.5))
    return Match(guess.reference, cosine, True, product / mine, theirs**0.5)
