"""Make a merged adapter again from its parents instead of downloading it, and prove that it is the same to the bit.

The rule: parents are found by the hash of their weights: in the registry, else in the repositories that the record names,
at whatever commit has them. Only the hash of the result decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorahub import header
from lorahub.algebra.recipe import Source
from lorahub.errors import FileFormatError, LorahubError, NotFoundError, VerificationError
from lorahub.files.loading import load_path
from lorahub.files.saving import save
from lorahub.hub import publish
from lorahub.hub.repository import Snapshot, choose, download, fingerprint, look
from lorahub.sync.document import Document, ParentNote
from lorahub.workspace.core import Workspace
from lorahub.workspace.errors import translated
from lorahub.workspace.replaying import replay
from registry.records import Recipe

if TYPE_CHECKING:
    from lorahub.algebra.adapter import Adapter

SEARCHED = 100
"""How many commits of a parent's repository are looked through."""


def rebuilt(workspace: Workspace, told: Document, recipe: Recipe, folder: Path) -> Path:
    """The adapter's file, made in `folder` from its recipe.

    Raises NotFoundError for a parent that is nowhere, VerificationError when the result has another hash.
    """
    output = recipe.document.get("output") or {}
    form, dtype = str(output.get("format", "kohya")), str(output.get("dtype", "fp16"))
    base = str(recipe.document["base"]) if recipe.document.get("base") else None
    notes = {note.data_sha256: note for note in told.parents if note.data_sha256}

    def find(name: str, data_sha256: str) -> Adapter:
        path = _parent(workspace, name, data_sha256, notes.get(data_sha256))
        adapter = load_path(path, base=base)
        if not isinstance(adapter.recipe, Source) or adapter.recipe.data_sha256 != data_sha256:
            raise VerificationError(f"the parent {name!r} at {path} does not have the weights that were recorded")
        return replace(adapter, recipe=Source(name, data_sha256, adapter.recipe.metadata))

    adapter = replay(recipe.document.get("recipe") or {}, find, format=form, dtype=dtype)
    path = folder / "pytorch_lora_weights.safetensors"
    save(adapter, path, format=form, dtype=dtype, drop=tuple(output.get("drop") or ()))
    sha256 = fingerprint(path, large=True)
    if sha256 != told.file.sha256:
        raise VerificationError(
            f"{told.name} is not what its parents make here: the Hub's file, made by {recipe.tool}, has sha256 "
            f"{told.file.sha256[:12]}, this one {sha256[:12]}; pull it without --rebuild"
        )
    return path


def _parent(workspace: Workspace, name: str, data_sha256: str, note: ParentNote | None) -> Path:
    with translated():
        known = workspace.registry.find(data_sha256=data_sha256)
    for record in known:
        try:
            return workspace.path(record)
        except NotFoundError:
            continue
    place = note.place if note is not None else None
    if note is None or place is None:
        raise NotFoundError(
            f"the parent {name!r} (data sha256 {data_sha256[:12]}) is neither here nor on the Hub: add it, "
            "or pull without --rebuild"
        )
    for snapshot in _history(place.repo):
        try:
            file = choose(snapshot, place)
        except (NotFoundError, LorahubError):
            continue
        if file.sha256 == note.sha256:
            path = download(snapshot, file)
            if header.data_sha256(path, header.read(path)) == data_sha256:
                return path
            raise FileFormatError(f"{place} does not have the weights that its sha256 promises")
    raise NotFoundError(
        f"the parent {name!r} (sha256 {note.sha256[:12]}) is no longer in {place.repo}: add it, or pull without --rebuild"
    )


def _history(repo: str) -> Iterator[Snapshot]:
    """The repository as it is, then as it was."""
    newest = look(repo)
    yield newest
    for commit in publish.history(newest.repo, SEARCHED):
        if commit != newest.commit:
            yield look(newest.repo, commit)
