"""Push: one version to a repository, by one commit that holds what is different and nothing else.

The rule: what somebody else wrote there is not replaced unless that was asked for. The weights and the record were
somebody else's when they are not what was last synced; a card is, as soon as anybody edited it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lorahub.errors import ConflictError, LorahubError, NotFoundError, UsageError, VerificationError
from lorahub.hub import publish
from lorahub.hub.publish import Change
from lorahub.hub.reference import parse
from lorahub.hub.repository import RemoteFile, Snapshot, download, fingerprint, look
from lorahub.sync import card, document, local
from lorahub.sync.document import Document
from lorahub.sync.local import Local
from lorahub.workspace.core import Workspace
from lorahub.workspace.errors import translated
from lorahub.workspace.plain import to_plain
from registry import Remote

PUSHED, PROPOSED, UNCHANGED = "pushed", "proposed", "unchanged"


@dataclass(frozen=True)
class Pushed:
    """What a push did: `pushed`, `proposed` (a pull request) or `unchanged`.

    `sent` are the paths in the repository that the commit changed, `kept` what was left as somebody edited it there,
    `created` says that the repository is new; `commit` is None for a dry run, and for a proposal.
    """

    reference: str
    repo: str
    branch: str
    outcome: str
    commit: str | None
    sent: tuple[str, ...]
    kept: tuple[str, ...]
    created: bool
    tag: str | None
    pull_request: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Target:
    """Where to push: the repository as it is (None: to be made), and what is known of it from before."""

    repo: str
    branch: str
    snapshot: Snapshot | None
    known: Remote | None
    new_branch: bool = False

    @property
    def files(self) -> Mapping[str, str]:
        """Git ids of what was last synced."""
        return self.known.files if self.known is not None else {}


def push(
    workspace: Workspace,
    reference: str,
    *,
    to: str | None = None,
    revision: str | None = None,
    private: bool = False,
    pr: bool = False,
    tag: str | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> Pushed:
    """Bring a version to the Hub, where the adapter was pushed or pulled before, or to the repository `to`.

    revision: a branch, begun if there is none. private: make the repository private if it is to be made. pr: propose the
    change in a pull request. tag: put this tag on the commit. force: replace what others changed there.
    Raises ConflictError when the Hub holds something else than was last synced, or changes meanwhile; AuthError without
    the right to write; NetworkError, after which another push finishes what is missing and repeats nothing.
    """
    record = workspace.get(reference)
    sending = local.to_send(workspace, record)
    target = _target(workspace, record.name, to, revision, private, pr)
    path = local.weights_path(target.known)
    if path.endswith("adapter_model.safetensors"):
        raise UsageError(
            f"{target.repo} holds a PEFT folder, which is not written: push to another repository, --to ..."
        )
    described = _with_places(target, document.describe(workspace, record, path))
    if not force:
        _check(workspace, target, sending, described)
    change, kept = _change(target, sending, described, force)
    done = Pushed(
        record.reference, target.repo, target.branch, PROPOSED if pr else PUSHED, None, tuple(change.additions), kept,
        target.snapshot is None, tag, None, local.notes(record),
    )  # fmt: skip
    if not change.additions:
        done = replace(done, outcome=UNCHANGED, commit=target.snapshot.commit if target.snapshot else None)
    if dry_run:
        return done
    if change.additions:
        if path in change.additions:
            local.check_bytes(sending)
        done = _send(target, change, done, private, pr)
    if done.outcome != PROPOSED:
        _remember(workspace, sending, target, described, done)
        if tag is not None and done.commit is not None:
            publish.tag(done.repo, tag, done.commit)
    return done


def _target(workspace: Workspace, name: str, to: str | None, revision: str | None, private: bool, pr: bool) -> _Target:
    with translated():
        known = workspace.registry.remote(name)
    if to is None and known is None:
        raise UsageError(f"{name} was not on the Hub before: say where it should be with --to USER/REPO")
    wanted = parse(to) if to is not None else None
    if wanted is not None and wanted.file is not None:
        raise UsageError(f"expected --to USER/REPO[@BRANCH], got {to}")
    repo = wanted.repo if wanted is not None else known.repo if known is not None else ""
    branch = revision or (wanted.revision if wanted is not None else None)
    if known is not None and known.repo != repo:
        known = None
    branch = branch or (known.branch if known is not None else "main")
    try:
        snapshot, new_branch = _look(repo, branch)
    except NotFoundError:
        if pr:
            raise
        return _Target(repo, branch, None, None, branch != "main")
    if private and not snapshot.private:
        raise ConflictError(f"{repo} exists and is public: make it private on its page first, or push elsewhere")
    return _Target(snapshot.repo, branch, snapshot, known, new_branch)


def _look(repo: str, branch: str) -> tuple[Snapshot, bool]:
    """The head of the branch, or where it would begin."""
    try:
        return look(repo, branch), False
    except NotFoundError:
        if branch == "main":
            raise
        return look(repo), True


def _with_places(target: _Target, described: Document) -> Document:
    """Where parents that this registry never saw can be had, as the record that is there already says."""
    note = target.snapshot.files.get(document.NAME) if target.snapshot is not None else None
    if target.snapshot is None or note is None or all(parent.place for parent in described.parents):
        return described
    try:
        told = document.read(download(target.snapshot, note).read_bytes(), target.repo)
    except VerificationError:
        return described
    known = {parent.sha256: parent for parent in told.parents}
    parents = [
        replace(known[each.sha256], weight=each.weight) if each.place is None and each.sha256 in known else each
        for each in described.parents
    ]
    return replace(described, parents=tuple(parents))


def _check(workspace: Workspace, target: _Target, sending: Local, described: Document) -> None:
    """Raises ConflictError when the weights or the record there are not those that were last synced."""
    if target.snapshot is None:
        return
    files, path = target.snapshot.files, described.file.path
    there = files.get(path)
    if there is not None and not _is_known(workspace, target, sending, there):
        raise ConflictError(
            f"{target.repo} holds another adapter at {path} than was last synced: "
            f"run `lorahub sync {sending.record.name}`, or push with --force to replace it"
        )
    note = files.get(document.NAME)
    expected = (target.files.get(document.NAME), fingerprint(described.to_bytes(), large=False))
    if note is not None and note.blob_id not in expected:
        raise ConflictError(
            f"{target.repo} says something else of the adapter ({document.NAME}) than was last synced: "
            f"run `lorahub sync {sending.record.name}`, or push with --force to replace it"
        )


def _is_known(workspace: Workspace, target: _Target, sending: Local, there: RemoteFile) -> bool:
    """Whether the weights there are what was last synced, or where nothing was, any version of the adapter."""
    if sending.is_at(there):
        return True
    if target.known is not None and target.known.path == there.path:
        return there.sha256 == target.known.remote_sha256 or target.files.get(there.path) == there.blob_id
    with translated():
        return there.sha256 in {version.file_sha256 for version in workspace.registry.versions(sending.record.name)}


def _change(target: _Target, sending: Local, described: Document, force: bool) -> tuple[Change, tuple[str, ...]]:
    """What differs from what is there, and what of it is left alone because somebody edited it."""
    wished: dict[str, Path | bytes] = {
        described.file.path: sending.file,
        document.NAME: described.to_bytes(),
        card.NAME: card.write(described, target.repo, sending.previews),
        **sending.previews,
    }
    kept = []
    there = target.snapshot.files if target.snapshot is not None else {}
    for path in [path for path in wished if path in there]:
        same = sending.is_at(there[path]) if path == described.file.path else there[path].is_same(wished[path])
        edited = not same and not force and path == card.NAME and _is_edited(target.snapshot)
        if edited:
            kept.append(path)
        if same or edited:
            del wished[path]
    return Change(f"{sending.record.reference} by lorahub", wished), tuple(kept)


def _is_edited(snapshot: Snapshot | None) -> bool:
    """Whether a person wrote the card, or wrote in it."""
    if snapshot is None or card.NAME not in snapshot.files:
        return False
    return not card.is_generated(download(snapshot, snapshot.files[card.NAME]).read_bytes())


def _send(target: _Target, change: Change, done: Pushed, private: bool, pr: bool) -> Pushed:
    snapshot = target.snapshot
    if snapshot is None:
        publish.make_repository(target.repo, private=private)
    if target.new_branch:
        publish.make_branch(target.repo, target.branch)
    if snapshot is None or target.new_branch:
        snapshot = look(target.repo, target.branch)
    if pr:
        return replace(done, pull_request=publish.propose(snapshot, target.branch, change))
    try:
        return replace(done, commit=publish.commit(snapshot, target.branch, change))
    except ConflictError as error:
        raise ConflictError(f"{target.repo} changed while this was pushed: run `lorahub sync` and try again") from error


def _remember(workspace: Workspace, sending: Local, target: _Target, described: Document, done: Pushed) -> None:
    """What both sides now hold."""
    if done.commit is None:
        raise LorahubError(f"{done.repo}: nothing was pushed, and nothing is there")
    path, name = described.file.path, sending.record.name
    files = {document.NAME: fingerprint(described.to_bytes(), large=False)}
    if path in done.sent:
        files[path] = fingerprint(sending.file, large=False)  # for a Hub that keeps the file in git
    elif path in target.files:
        files[path] = target.files[path]
    remote = Remote(
        repo=done.repo,
        branch=done.branch,
        path=path,
        commit=done.commit,
        local_sha256=described.file.sha256,
        remote_sha256=described.file.sha256,
        files=files,
        said=to_plain(described.said),
    )
    with translated():
        before = workspace.registry.remote(name)
        if before is None or replace(before, synced_at=None) != remote:
            workspace.registry.put_remote(name, remote)
