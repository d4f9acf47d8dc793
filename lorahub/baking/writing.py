"""The files of a baked checkpoint, under temporary names: weights rewritten, everything else copied.

The rule: what would be loaded in place of the baked weights (other variants, pickles, an original single file) is not
copied, and said.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lorahub import header
from lorahub.baking.planning import Plan
from lorahub.checkpoints.writing import rewrite
from lorahub.errors import VerificationError
from lorahub.files.inspecting import PROVENANCE_KEY
from lorahub.files.provenance import provenance
from lorahub.files.store import HASH_KEY, sync_folder

_NO_LONGER_TRUE = (HASH_KEY, "sshs_legacy_hash", "modelspec.hash_sha256")
"""Metadata about the bytes of the checkpoint as it was."""
_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".onnx_data")
_INDEX = ".index"
_NO_PART = (".git", ".cache")
"""What versions and downloads of the folder leave in it, which is about other bytes."""


def write_file(plan: Plan, source: Path, target: Path, device: str, advance: Callable[[], None]) -> None:
    """Rewrite one weights file with its edits, and with what was baked into what in its metadata."""
    described = plan.checkpoint.files[source]
    kept = {key: value for key, value in described.metadata.items() if key not in _NO_LONGER_TRUE}
    kept.setdefault("format", "pt")  # transformers refuses metadata that does not say so
    with ThreadPoolExecutor(1) as aside:
        digest = aside.submit(header.data_sha256, source, described)
        rewrite(
            source,
            described,
            target,
            plan.edits[source],
            {**kept, PROVENANCE_KEY: _provenance(plan, source, "0" * 64)},
            late=lambda: {PROVENANCE_KEY: _provenance(plan, source, digest.result())},
            device=device,
            advance=advance,
        )


def write_folder(plan: Plan, target: Path, device: str, advance: Callable[[], None]) -> tuple[str, ...]:
    """Copy the folder and rewrite its weights; returns the paths, relative to it, of what was left out."""
    source = plan.checkpoint.path
    left_out = tuple(sorted(str(path.relative_to(source)) for path in _stale(plan)))

    def ignored(folder: str, names: list[str]) -> set[str]:
        inside = {name: Path(folder) / name for name in names}
        return {
            name
            for name, path in inside.items()
            if name in _NO_PART or path in plan.edits or str(path.relative_to(source)) in left_out
        }

    shutil.copytree(source, target, ignore=ignored, copy_function=_copy)
    for file in plan.edits:
        write_file(plan, file, target / file.relative_to(source), device, advance)
    for folder in {target, *(path for path in target.rglob("*") if path.is_dir())}:
        sync_folder(folder)
    return left_out


def _copy(source: str, target: str) -> None:
    shutil.copyfile(source, target)
    with Path(target).open("rb") as file:
        os.fsync(file.fileno())
    if not filecmp.cmp(source, target, shallow=False):
        raise VerificationError(f"read back, {Path(target).name} differs from what was copied")


def _stale(plan: Plan) -> Iterator[Path]:
    """Other weights beside the edited ones, and at the top of the folder, and the indexes that name them."""
    taken = plan.checkpoint.files.keys()
    for folder in {plan.checkpoint.path, *(file.parent for file in plan.edits)}:
        stale = {
            path for path in folder.iterdir() if path.suffix in _WEIGHTS and path not in taken and not path.is_dir()
        }
        yield from stale
        for index in folder.glob(f"*{_INDEX}*.json"):
            if any(folder / name not in taken for name in _named(index)):
                yield index


def _named(index: Path) -> set[str]:
    try:
        return {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, AttributeError, TypeError):
        return set()


def _provenance(plan: Plan, source: Path, digest: str) -> str:
    """What was baked into what; it has the same length for every hash."""
    checkpoint = plan.checkpoint
    before = checkpoint.files[source].metadata.get(PROVENANCE_KEY, "null")
    file = source.relative_to(checkpoint.path).as_posix() if checkpoint.path.is_dir() else source.name
    facts = {
        **provenance(plan.request.adapter, {"dtypes": plan.dtypes, "drop": sorted(plan.request.dropped)}),
        "method": "bake",
        "dora_layers": len(plan.request.doras),
        "into": {"name": checkpoint.name, "file": file, "data_sha256": digest, "provenance": _parsed(before)},
    }
    return json.dumps(facts, sort_keys=True, ensure_ascii=False)


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:  # somebody edited it: keep what it says, as text
        return text
