"""Everything the registry knows of one version, and how to run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorahub.errors import NotFoundError
from lorahub.workspace.errors import translated

if TYPE_CHECKING:
    from pathlib import Path

    from lorahub.workspace.core import Workspace
    from registry.records import Location, Parent, Recipe, RunSettings, Validation, VersionRecord


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One version with all that hangs on it. `path` is None when its file is nowhere; `versions` are the live ones."""

    record: VersionRecord
    path: Path | None
    versions: tuple[int, ...]
    aliases: Mapping[str, int]
    locations: tuple[Location, ...]
    parents: tuple[Parent, ...]
    recipe: Recipe | None
    validations: tuple[Validation, ...]
    norm: float | None
    """Of the whole vector, from the norms of its layers; None when these were not recorded."""
    snippet: tuple[str, ...]
    """Lines of Python that run it with diffusers; empty when nothing says how."""
    metadata: Mapping[str, str] | None
    """What the file says of itself; None unless asked for."""


@translated()
def show(workspace: Workspace, reference: str, *, metadata: bool = False) -> Shown:
    """What is recorded of the version that `reference` names; `metadata` also reads its file's header.

    Raises NotFoundError, with `metadata` also when the file is nowhere.
    """
    registry = workspace.registry
    record = registry.get(reference)
    exact = record.reference
    siblings = [other for other in registry.versions(record.name) if other.deleted_at is None]
    norms = registry.norms(exact)
    path = _path(workspace, record)
    stated: Mapping[str, str] | None = None
    if metadata:
        from lorahub import header

        stated = header.read(path or workspace.path(record)).metadata
    return Shown(
        record=record,
        path=path,
        versions=tuple(other.number for other in siblings),
        aliases={alias: other.number for other in siblings for alias in other.aliases},
        locations=registry.locations(reference=exact),
        parents=registry.parents(exact),
        recipe=registry.recipe(exact),
        validations=registry.validations(exact),
        norm=sum(norm * norm for norm in norms.values()) ** 0.5 if norms else None,
        snippet=snippet(record),
        metadata=stated,
    )


def snippet(record: VersionRecord) -> tuple[str, ...]:
    """How to run an adapter on a diffusers pipeline, ready to paste; empty when nothing is recorded about that.

    Whatever came from a file is written as a literal, so that pasting it runs nothing but what is meant.
    """
    run = record.run
    if run is None:
        return ()
    lines = ["import lorahub"]
    if run.scheduler is not None and run.scheduler.isidentifier() and run.scheduler.isascii():
        lines.append(f"from diffusers import {run.scheduler}")
        arguments = f", **{dict(run.scheduler_args)!a}" if run.scheduler_args else ""
        lines.append(f"pipe.scheduler = {run.scheduler}.from_config(pipe.scheduler.config{arguments})")
    weight = "" if run.lora_scale is None else f", weight={run.lora_scale!r}"
    lines.append(f"lorahub.attach(pipe, lorahub.load({record.reference!a}){weight})")
    called = {"num_inference_steps": run.steps, "guidance_scale": _guidance(run)}
    given = "".join(f", {name}={value!r}" for name, value in called.items() if value is not None)
    return (*lines, f"image = pipe(prompt{given}).images[0]")


def _guidance(run: RunSettings) -> float | None:
    return run.guidance_min if run.guidance_min is not None else run.guidance_max


def _path(workspace: Workspace, record: VersionRecord) -> Path | None:
    """Where the file can be read now. What only a remote store holds is not fetched for that."""
    from registry import LocalBlobs

    blobs = workspace.registry.blobs
    if record.stored and not isinstance(blobs, LocalBlobs):
        cache: LocalBlobs | None = getattr(blobs, "cache", None)
        return cache.path(record.file_sha256) if cache and cache.stat(record.file_sha256) else None
    try:
        return workspace.path(record)
    except NotFoundError:
        return None
