"""Register what was made, with its lineage: parents, weights, settings and the whole recipe, in one transaction.

The rule: the file is written, read back and verified first, then its blob is put into the store, then its row is written.
A crash leaves at most an unreferenced file in the store, which a collection removes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from lorahub.algebra.adapter import Adapter
from lorahub.algebra.recipe import Recipe, Source, coefficients
from lorahub.errors import UsageError
from lorahub.files.inspecting import inspect
from lorahub.files.paths import find_weights
from lorahub.files.saving import default_format
from lorahub.making import Combination, Made, Wish, make
from lorahub.workspace.core import Workspace
from lorahub.workspace.errors import translated
from lorahub.workspace.facts import full_facts
from registry import Facts, LocalBlobs, Parent, Recipe as RecipeRecord, RunSettings

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Composed:
    """A version that was made and registered; `file` is where it was also written, None when only the store has it."""

    reference: str
    file_sha256: str
    parents: tuple[Parent, ...]
    made: Made
    file: Path | None


def compose(
    workspace: Workspace,
    adapter: Adapter | Combination,
    name: str,
    wish: Wish,
    *,
    path: str | Path | None = None,
    tags: Iterable[str] = (),
    notes: str = "",
    progress: Progress | None = None,
) -> Composed:
    """Make `adapter` as wished and register it as the next version of `name`; `path` is where to write it too.

    Raises UsageError for the format peft (a registered adapter is one file) and for a name that cannot be one, and what
    `make` raises; then nothing is registered.
    """
    check_name(name)
    if "peft" in (wish.format, path and default_format(adapter.base, Path(path))):
        raise UsageError("a registered adapter is one file, peft writes a folder: choose --format kohya or diffusers")
    if path is not None:
        return _written(workspace, adapter, name, wish, Path(path), tuple(tags), notes, progress)
    with _workplace(workspace) as place:
        return replace(_written(workspace, adapter, name, wish, place, tuple(tags), notes, progress), file=None)


def check_name(name: str) -> None:
    """Raises UsageError for what cannot be the name of an adapter, before anything is computed."""
    from registry.names import adapter_name

    with translated():
        adapter_name(name)


def _written(
    workspace: Workspace,
    adapter: Adapter | Combination,
    name: str,
    wish: Wish,
    path: Path,
    tags: tuple[str, ...],
    notes: str,
    progress: Progress | None,
) -> Composed:
    made = make(adapter, path, wish, progress=progress)
    found = full_facts(path)
    document = inspect(path)[0].provenance or {}
    terms = list(parents(made.recipe))
    facts = _facts(workspace, found.facts, terms, made.expression)
    recipe = RecipeRecord(
        method=str(document["method"]),
        expression=made.expression,
        tool=str(document["tool"]),
        settings={"output": document["output"], **document["settings"]},  # type: ignore[dict-item]
        document=document,
    )
    with translated():
        workspace.registry.blobs.put(path, expect=facts.file_sha256)
    with workspace.transaction():
        record = workspace.registry.add_version(
            name, facts, norms=found.norms, tags=tags, notes=notes, stored=True, parents=terms, recipe=recipe
        )
        workspace.registry.record_validations(record.reference, found.findings)
        if found.sketch is not None:
            workspace.registry.put_sketch(record.reference, found.sketch)
    return Composed(record.reference, facts.file_sha256, tuple(terms), made, path)


def parents(recipe: Recipe) -> Iterator[Parent]:
    """The sources of a recipe with their weights; a source that is a folder is one parent for each of its files."""
    for weight, source in coefficients(recipe):
        for sha256 in _hashes(source):
            reference = source.reference if source.file_sha256 else None  # a stand-in hash names no file
            yield Parent(sha256=sha256, weight=weight, reference=reference or None)


def _hashes(source: Source) -> list[str]:
    if source.file_sha256:
        return [source.file_sha256]
    if not source.path:
        raise UsageError(f"{source.name} was made in memory: save it first, so that the lineage has a file to name")
    return [_sha256(file) for file in find_weights(Path(source.path))]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _facts(workspace: Workspace, facts: Facts, terms: Sequence[Parent], expression: str) -> Facts:
    """What the parents tell of a child: how to run it, and the words that trigger it; one parent also what kind it is."""
    known = [(term.weight, workspace.get(term.reference)) for term in terms if term.reference is not None]
    adding = [record for weight, record in known if weight > 0]
    runs: list[RunSettings] = [record.run for record in adding if record.run is not None]
    words = dict.fromkeys(word for record in adding for word in record.trigger_words)
    kind = known[0][1].kind if len(terms) == 1 and known and known[0][0] > 0 else "merged"
    return replace(
        facts,
        kind=kind,
        run=runs[0] if len(runs) == 1 else facts.run,
        trigger_words=tuple(words) or facts.trigger_words,
        source={"recipe": expression},
    )


@contextmanager
def _workplace(workspace: Workspace) -> Iterator[Path]:
    """A path for a file on its way into the store; what a crash leaves there, the next collection sweeps up."""
    blobs = workspace.registry.blobs
    if not isinstance(blobs, LocalBlobs):
        with TemporaryDirectory(prefix="lorahub-") as folder:
            yield Path(folder) / "made.safetensors"
        return
    path = blobs.root / "incoming" / f"{uuid4().hex}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
