"""Make an adapter again from its recipe, and prove that the result is the same to the bit.

The rule: names and metadata of parents are those that were recorded, so a renamed parent changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lorahub.algebra.adapter import Adapter, weighted
from lorahub.algebra.geometry import orthogonal, rescaled
from lorahub.algebra.ranks import RankRule, energy, fixed, relative
from lorahub.algebra.recipe import Recipe, Source, Step, Sum
from lorahub.algebra.truncate import truncate
from lorahub.checkpoints import Checkpoint
from lorahub.errors import FileFormatError, NotFoundError, VerificationError
from lorahub.extracting import extract
from lorahub.files.inspecting import inspect
from lorahub.files.provenance import tool_version
from lorahub.files.saving import DTYPES, Saved, file_budget, save
from lorahub.files.store import replacing
from lorahub.making import Combination
from lorahub.references import existing, find, reads_as_registry
from lorahub.workspace.core import Workspace
from lorahub.workspace.errors import translated
from lorahub.workspace.sources import Sources
from registry import VersionRecord

Json = Mapping[str, Any]
FindSource = Callable[[str, str], Adapter]
"""(name, sha256 of the data) -> the adapter. Raises NotFoundError."""
FindCheckpoint = Callable[[str, str], Checkpoint]
"""(name, sha256 of the data) -> the base model. Raises NotFoundError."""
Progress = Callable[[int, int], None]

_RULE = re.compile(r"(fixed|energy|relative|budget)\(([0-9.eE+-]+)\)")


@dataclass(frozen=True)
class Rebuilt:
    """A proof: what was recorded and what came out. `file_identical` is None where the file's hash is not recorded."""

    reference: str
    expression: str
    data_sha256: str
    file_identical: bool | None
    parents: tuple[tuple[str, str], ...]
    """(name, sha256 of the data) of each source, in order."""
    made_by: str
    rebuilt_by: str
    output: Path | None


def replay(
    recipe: Json,
    find_source: FindSource,
    *,
    find_checkpoint: FindCheckpoint | None = None,
    format: str = "kohya",
    dtype: str = "fp16",
    progress: Progress | None = None,
) -> Adapter:
    """The adapter that a recipe (`lorahub.algebra.recipe.to_json`) describes.

    find_checkpoint: finds the base models that an adapter was extracted from. format, dtype: what it was written as; a
    budget of bytes depends on them.
    Raises FileFormatError for what is no recipe, and what the functions that find raise.
    """

    def again(node: Any) -> Adapter:
        if not isinstance(node, Mapping):
            raise _malformed(node)
        if "source" in node:
            return find_source(str(node["source"]), str(node.get("data_sha256", "")))
        if "sum" in node:
            parts = [float(weight) * again(term) for weight, term in node["sum"]]
            if not parts:
                raise FileFormatError("the recipe is an empty sum")
            return sum(parts[1:], start=parts[0])
        step, settings = node["step"], node["settings"]
        if step == "extract" and find_checkpoint is not None:
            return _extracted(node, find_checkpoint, format, dtype, progress)
        operand, *others = [again(part) for part in node["of"]]
        if step == "weighted":
            return weighted(operand, {str(pattern): float(weight) for pattern, weight in settings["weights"]})
        if step == "orthogonal":
            return orthogonal(operand, *others)
        if step == "normalised":
            return rescaled(operand, float(settings["factor"]))
        if step == "truncate":
            rule = _rule(str(settings["rule"]), operand, format, dtype)
            return truncate(operand, rule, dtype=DTYPES[dtype], progress=progress)
        if step == "merge":
            asked = _asked([operand, *others], settings)
            ranks = _rule(str(settings["rule"]), asked.planned, format, dtype) if "rule" in settings else None
            return asked.reduced(ranks, dtype=DTYPES[dtype], progress=progress)
        raise FileFormatError(f"the recipe has a step {str(step)!r}, which this lorahub cannot replay")

    try:
        return again(recipe)
    except (KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise _malformed(error) from None


def rebuild(
    workspace: Workspace,
    reference: str,
    *,
    output: Path | None = None,
    parents: Sequence[Path] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> Rebuilt:
    """Replay the recipe of a registered version, or of a file that carries its own, and compare with what is recorded.

    output: where to put the result; else it is only proven. parents: more files and folders to find sources in.
    Raises NotFoundError when there is no recipe or a parent is nowhere, VerificationError when the result differs (then
    nothing is written), ConflictError when the output exists.
    """
    record, document = recorded(workspace, reference)
    expected = (record.data_sha256 if record is not None else None) or _data_sha256(workspace, reference, record)
    wanted, sources = _output(document), Sources(workspace, document, parents)
    adapter = replay(
        document["recipe"],
        sources,
        find_checkpoint=sources.checkpoint,
        format=wanted["format"],
        dtype=wanted["dtype"],
        progress=progress,
    )

    def written(path: Path) -> tuple[Saved, bool | None]:
        saved = save(adapter, path, format=wanted["format"], dtype=wanted["dtype"], drop=wanted["drop"])
        if saved.data_sha256 != expected:
            raise VerificationError(
                f"{reference} cannot be reproduced here: its weights have sha256 {expected[:12]}, the rebuilt ones "
                f"{saved.data_sha256[:12]} ({_versions(document)})"
            )
        return saved, None if record is None or path.is_dir() else _file_sha256(path) == record.file_sha256

    if output is None:
        with TemporaryDirectory(prefix="lorahub-") as folder:
            saved, same = written(Path(folder) / "rebuilt.safetensors")
    else:
        with replacing(output, force=force) as temporary:
            saved, same = written(temporary)
    return Rebuilt(
        record.reference if record is not None else reference,
        str(document.get("expression", "")),
        saved.data_sha256,
        same,
        tuple(sources.used.items()),
        str(document.get("tool", "")),
        f"lorahub {tool_version()}",
        output,
    )


def _extracted(node: Json, find: FindCheckpoint, format: str, dtype: str, progress: Progress | None) -> Adapter:
    """What a recorded extraction made, its two checkpoints under their recorded names."""
    (difference,), settings = node["of"], node["settings"]
    (_, tuned), (_, base) = (
        (weight, (str(side["source"]), str(side["data_sha256"]))) for weight, side in difference["sum"]
    )
    text, named = str(settings["rule"]), (Sum(((1.0, Source(*tuned)), (-1.0, Source(*base)))),)

    def rule(adapter: Adapter) -> RankRule:
        return _rule(text, _renamed(adapter, named), format, dtype)

    found = extract(
        find(*base),
        find(*tuned),
        rule if text.startswith("budget") else rule(Adapter("", {})),  # only a budget has to see what differs
        only=[str(component) for component in settings.get("only", ())],
        offsets=bool(settings.get("offsets")),
        dtype=DTYPES[dtype],
        progress=progress,
    )
    return _renamed(found, named)


def _renamed(adapter: Adapter, operands: tuple[Recipe, ...]) -> Adapter:
    """The adapter with other operands in the last step of its recipe."""
    return (
        replace(adapter, recipe=replace(adapter.recipe, of=operands)) if isinstance(adapter.recipe, Step) else adapter
    )


def recorded(workspace: Workspace, reference: str) -> tuple[VersionRecord | None, Json]:
    """The version a reference names, None for a file outside the registry, and the document that says how it was made.

    Raises NotFoundError when nothing says it.
    """
    record = None
    if existing(reference) is None:
        record = workspace.get(reference) if reads_as_registry(reference) else None
    if record is not None:
        with translated():
            recipe = workspace.registry.recipe(record.reference)
        if recipe is not None and recipe.document.get("recipe"):
            return record, recipe.document
    path = workspace.path(record) if record is not None else find(reference, workspace).path
    document = inspect(path)[0].provenance
    if not document or not document.get("recipe"):
        raise NotFoundError(f"nothing says how {reference} was made: neither the registry nor the file has a recipe")
    return record, document


def _output(document: Json) -> Json:
    output = document.get("output")
    if not isinstance(output, Mapping) or output.get("dtype") not in DTYPES or "format" not in output:
        raise FileFormatError("the recipe does not say in what format and dtype the file was written")
    return {"drop": (), **output}


def _asked(adapters: Sequence[Adapter], settings: Json) -> Combination:
    """What a recorded merge asked for."""
    weights = [float(weight) for weight in settings["weights"]]
    given = {name: value for name, value in settings.items() if name not in ("method", "weights", "rule")}
    return Combination(list(zip(weights, adapters, strict=True)), str(settings["method"]), given)


def _rule(text: str, adapter: Adapter, format: str, dtype: str) -> RankRule:
    match = _RULE.fullmatch(text)
    if not match:
        raise FileFormatError(f"the recipe has a rank rule {text!r}, which this lorahub does not know")
    kind, number = match[1], match[2]
    if kind == "budget":
        return file_budget(adapter, int(number), format=format, dtype=dtype)
    return fixed(int(number)) if kind == "fixed" else {"energy": energy, "relative": relative}[kind](float(number))


def _data_sha256(workspace: Workspace, reference: str, record: VersionRecord | None) -> str:
    path = workspace.path(record) if record is not None else find(reference, workspace).path
    return "+".join(found.hashes["data_sha256"] for found in inspect(path, hashes=True))


def _file_sha256(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions(document: Json) -> str:
    made, now = str(document.get("tool", "an unknown version")), f"lorahub {tool_version()}"
    same = "the same version; another processor or torch may round differently"
    return f"made by {made}, now {now}" if made != now else f"{now}: {same}"


def _malformed(what: object) -> FileFormatError:
    return FileFormatError(f"this is no recipe that lorahub can read ({str(what)[:100]})")
