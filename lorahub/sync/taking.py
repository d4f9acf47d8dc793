"""Register what was pulled: blob first, then in one transaction its row, its lineage, what people said, and its place."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lorahub.bases import declared
from lorahub.errors import VerificationError
from lorahub.hub.heading import Heading
from lorahub.hub.repository import RemoteFile, Snapshot, fingerprint, peft_config
from lorahub.sync import document, local, merging
from lorahub.sync.document import Document
from lorahub.workspace import accelerators
from lorahub.workspace.core import Workspace
from lorahub.workspace.errors import translated
from lorahub.workspace.facts import full_facts
from lorahub.workspace.plain import to_plain
from registry import Facts, Parent, Remote, Validation, VersionRecord

_DTYPES = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}


@dataclass(frozen=True)
class Found:
    """What is known of a remote file when it has arrived; `told` is about these weights, `known` from the last sync."""

    snapshot: Snapshot
    file: RemoteFile
    heading: Heading
    told: Document | None
    branch: str | None
    known: Remote | None


def take(workspace: Workspace, name: str, path: Path, found: Found) -> tuple[VersionRecord, str]:
    """Register the file as a version of `name`; returns it, and the sha256 of the file as the Hub has it.

    A PEFT folder becomes one file with the same ΔW. Raises VerificationError when the bytes are not those announced.
    """
    remote_sha256 = fingerprint(path, large=True)
    if found.file.sha256 is not None and found.file.sha256 != remote_sha256:
        raise VerificationError(
            f"{found.snapshot.repo}:{found.file.path} is not what the Hub announces: nothing was taken"
        )
    with ExitStack() as stack:
        if peft_config(found.snapshot, found.file) is not None:
            path = _as_one_file(path, Path(stack.enter_context(TemporaryDirectory(prefix="lorahub-"))))
        read = full_facts(path, beside=())
        facts = _facts(read.facts, found, remote_sha256)
        with translated():
            workspace.registry.blobs.put(path, expect=facts.file_sha256)
    registry, told = workspace.registry, found.told
    if told is not None and told.file.sha256 != remote_sha256:
        told = replace(told, parents=(), recipe=None, validations=())
    lineage: dict[str, Any] = {}
    if told is not None and (told.recipe is not None or told.parents):
        parents = [Parent(sha256=each.sha256, weight=each.weight) for each in told.parents]
        lineage = {"parents": parents, "recipe": told.recipe}
    with workspace.transaction():
        before = local.newest(workspace, name) if found.known is not None else None
        mine = document.said(before) if before is not None else None
        record = registry.add_version(name, facts, norms=read.norms, stored=True, **lineage)
        registry.record_validations(record.reference, read.findings)
        if told is not None:
            registry.record_validations(record.reference, _unchecked(told, read.findings))
            theirs = told.said
            if mine is not None:
                base = merging.read_said(found.known.said if found.known else None)
                theirs = merging.merge(base, mine, theirs, prefer=merging.OURS).said
            record = merging.apply(workspace, record, theirs)
        if read.sketch is not None:
            registry.put_sketch(record.reference, read.sketch)
        if found.branch is not None:
            # Where the Hub went back to a file that is an older version here, the newest version stays the newest.
            registry.put_remote(name, _remote(found, workspace.get(name), remote_sha256))
    return record, remote_sha256


def _as_one_file(path: Path, folder: Path) -> Path:
    """PEFT keeps the scale in a file of its own, which a registered adapter has not."""
    from lorahub.files.loading import load_path
    from lorahub.files.saving import default_format, save
    from lorahub.workspace.structure import describe

    dtypes = describe(path).structure.dtypes
    adapter = load_path(path)
    target = folder / "pytorch_lora_weights.safetensors"
    format = default_format(adapter.base, target)
    save(adapter, target, format=format, dtype=_DTYPES.get(dtypes[0] if dtypes else "", "fp32"))
    return target


def _facts(facts: Facts, found: Found, remote_sha256: str) -> Facts:
    """With what the repository says of its file: who made it is not in the file, and not its folder's name either."""
    snapshot, card = found.snapshot, found.snapshot.card
    told = declared.read({"base_model": _first(card.get("base_model"))})
    family = accelerators.recognise([snapshot.repo.partition("/")[2]], facts.base_detected)
    licence = str(card.get("license_name") if card.get("license") == "other" else card.get("license") or "")[:200]
    words = _first(card.get("instance_prompt")).strip()
    merged = found.told is not None and found.told.recipe is not None
    return replace(
        facts,
        kind="merged" if merged else _kind(facts.kind, family is not None, found),
        run=facts.run or (family.run if family is not None else None),
        base_declared=facts.base_declared or (told.base if told is not None else None),
        licence=facts.licence or licence or None,
        trigger_words=(words[:100],) if words and found.told is None else facts.trigger_words,
        source={
            "repo": snapshot.repo, "commit": snapshot.commit, "path": found.file.path, "sha256": remote_sha256,
        },
    )  # fmt: skip


def _kind(kind: str, accelerates: bool, found: Found) -> str:
    if accelerates and kind == "other":
        return "acceleration"
    converted = peft_config(found.snapshot, found.file) is not None
    return "other" if converted and kind == "merged" else kind  # lorahub's own metadata came with the conversion


def _first(value: object) -> str:
    if isinstance(value, list):
        value = value[0] if value else ""
    return value if isinstance(value, str) else ""


def _unchecked(told: Document, findings: tuple[Validation, ...]) -> list[Validation]:
    """The checks that were made elsewhere and not here."""
    here = {finding.check for finding in findings}
    return [
        Validation(check=each.check, severity=each.severity, message=each.message, layer=each.layer, tool=each.tool)
        for each in told.validations
        if each.check not in here
    ]


def _remote(found: Found, newest: VersionRecord, remote_sha256: str) -> Remote:
    note = found.snapshot.files.get(document.NAME)
    files = {document.NAME: note.blob_id} if note is not None and found.told is not None else {}
    files |= {found.file.path: found.file.blob_id} if found.file.sha256 is None else {}
    return Remote(
        repo=found.snapshot.repo,
        branch=found.branch or "main",
        path=found.file.path,
        commit=found.snapshot.commit,
        local_sha256=newest.file_sha256,
        remote_sha256=remote_sha256,
        files=files,
        said=to_plain(found.told.said) if found.told is not None else None,
    )
