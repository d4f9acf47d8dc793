"""Sync: bring both sides together, adapter by adapter.

The rule: what one side changed is carried to the other; what both changed is left to a person, unless told who wins.
Nothing is deleted there unless asked for, and nothing here ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from lorahub.errors import ConflictError, LorahubError, NetworkError, UsageError, VerificationError
from lorahub.hub import publish
from lorahub.hub.publish import Change
from lorahub.hub.repository import download
from lorahub.sync import card, document, merging, state
from lorahub.sync.document import Said
from lorahub.sync.pulling import Pulled, pull
from lorahub.sync.pushing import Pushed, push
from lorahub.sync.state import Sides, State
from lorahub.workspace.core import Workspace
from lorahub.workspace.errors import translated
from lorahub.workspace.plain import to_plain

NONE, PUSH, PULL, MERGE, PROPOSE, DELETE = "none", "push", "pull", "merge", "propose", "delete"
CONFLICT, SKIPPED, FAILED = "conflict", "skipped", "failed"
OURS, THEIRS, PR = merging.OURS, merging.THEIRS, "pr"


@dataclass(frozen=True)
class Synced:
    """What was done (or in a dry run would be) about one adapter, and how it was before.

    action: `none`, `push`, `pull`, `merge` (what is said was merged; both sides now say it), `propose`, `delete`,
    `conflict`, `skipped` or `failed`; the last three for the `reason`.
    """

    name: str
    action: str
    state: State
    reason: str = ""
    conflicts: tuple[str, ...] = ()
    pushed: Pushed | None = None
    pulled: Pulled | None = None


def sync(
    workspace: Workspace,
    names: Iterable[str] = (),
    *,
    all: bool = False,
    prefer: str | None = None,
    delete: bool = False,
    dry_run: bool = False,
) -> tuple[Synced, ...]:
    """Sync these adapters, or all that were ever pushed or pulled; one that fails does not stop the others.

    prefer: who wins where both changed the same: `ours`, `theirs`, or `pr`: ours are proposed in a pull request.
    delete: take adapters that are in the trash here off the Hub.
    Raises UsageError unless either names or `all` are given, NotFoundError for a name that was never on the Hub, and the
    error itself when only one was named.
    """
    names = tuple(names)
    if bool(names) is all:
        raise UsageError("name the adapters to sync, or say --all")
    if prefer not in (None, OURS, THEIRS, PR):
        raise UsageError(f"expected ours, theirs or pr, got {prefer!r}")
    done = []
    for name, before in zip(state.tracked(workspace, names), state.status(workspace, names), strict=True):
        try:
            done.append(_sync(workspace, name, before, prefer, delete, dry_run))
        except NetworkError:
            raise
        except LorahubError as error:
            if len(names) == 1:
                raise
            action = CONFLICT if isinstance(error, ConflictError) else FAILED
            done.append(Synced(name, action, before, str(error)))
    return tuple(done)


def _sync(workspace: Workspace, name: str, before: State, prefer: str | None, delete: bool, dry_run: bool) -> Synced:
    if not dry_run:
        _settle(workspace, name, before)
    if before.status == state.SAME:
        return Synced(name, NONE, before)
    if before.status == state.REMOVED and delete:
        return _delete(workspace, name, before, prefer, dry_run)
    if before.status in (state.REMOVED, state.GONE, state.REFUSED):
        return Synced(name, SKIPPED, before, _why(before))
    both = state.sides(workspace, name, state.tracked(workspace, [name])[name])
    plan = _plan(both, before, prefer)
    if dry_run or plan.action == CONFLICT:
        return plan
    return _carry_out(workspace, both, plan, prefer)


def _settle(workspace: Workspace, name: str, before: State) -> None:
    """Remember that both sides hold the same weights, where they came to that without us."""
    with translated():
        remote = workspace.registry.remote(name)
        sha256 = before.local_sha256
        if remote is None or sha256 is None or sha256 != before.remote_sha256 or sha256 == remote.remote_sha256:
            return
        workspace.registry.put_remote(name, replace(remote, remote_sha256=sha256, local_sha256=sha256))


def _why(before: State) -> str:
    if before.status == state.REMOVED:
        return f"{before.reason}: --delete takes it off {before.repo}, `lorahub restore {before.name}` brings it back"
    if before.status == state.GONE:
        return f"{before.reason}: `lorahub push {before.name}` puts it there again"
    return before.reason


def _plan(both: Sides, before: State, prefer: str | None) -> Synced:
    """What is to be done, and the fields and weights on which the sides contradict each other."""
    conflicts = ["weights"] if "weights" in before.here and "weights" in before.there else []
    if "record" in before.there:
        conflicts += _merged(both, None).conflicts
    if conflicts and prefer is None:
        reason = f"changed here and in {before.repo}: {', '.join(conflicts)}; sync with --ours, --theirs or --pr"
        return Synced(both.name, CONFLICT, before, reason, tuple(conflicts))
    if conflicts and prefer == PR:
        return Synced(both.name, PROPOSE, before, conflicts=tuple(conflicts))
    takes = "weights" in before.there and not ("weights" in conflicts and prefer == OURS)
    gives = "weights" in before.here and not ("weights" in conflicts and prefer == THEIRS)
    action = PULL if takes else PUSH if gives else MERGE if "record" in before.there else PUSH
    return Synced(both.name, action, before, conflicts=tuple(conflicts))


def _merged(both: Sides, prefer: str | None) -> merging.Merged:
    """What is said, of both sides; without a readable record there, what is said here."""
    assert both.record is not None
    mine, theirs = document.said(both.record), _theirs(both)
    if theirs is None:
        return merging.Merged(mine, ())
    return merging.merge(merging.read_said(both.remote.said), mine, theirs, prefer=prefer)


def _theirs(both: Sides) -> Said | None:
    if both.note is None:
        return None
    return document.read(download(both.snapshot, both.note).read_bytes(), both.snapshot.repo).said


def _carry_out(workspace: Workspace, both: Sides, plan: Synced, prefer: str | None) -> Synced:
    name, before = both.name, plan.state
    if plan.action == PROPOSE:
        return replace(plan, pushed=push(workspace, name, pr=True, force=True))
    said = None if prefer == PR else prefer
    if "record" in before.there:
        _merge_said(workspace, both, said)
    pulled = None
    if plan.action == PULL:
        pulled = pull(workspace, _reference(both), name=name, force=True)
    elif "weights" in before.there:  # ours win: what is there has been seen
        _acknowledge(workspace, both)
    pushed = None
    if _has_more(workspace, name):
        pushed = push(workspace, name)
    return replace(plan, pushed=pushed, pulled=pulled)


def _reference(both: Sides) -> str:
    branch = "" if both.remote.branch == "main" else f"@{both.remote.branch}"
    return f"{both.remote.repo}{branch}:{both.remote.path}"


def _merge_said(workspace: Workspace, both: Sides, prefer: str | None) -> None:
    """Say here what the merge says, and remember what is said there as what both sides last had in common."""
    assert both.record is not None
    assert both.note is not None
    theirs = _theirs(both)
    assert theirs is not None
    merged = _merged(both, prefer)
    if merged.conflicts:
        raise VerificationError(f"{both.name}: {', '.join(merged.conflicts)} changed meanwhile: sync again")
    with workspace.transaction():
        merging.apply(workspace, both.record, merged.said)
        files = {**both.remote.files, document.NAME: both.note.blob_id}
        workspace.registry.put_remote(
            both.name, replace(both.remote, files=files, said=to_plain(theirs), synced_at=None)
        )


def _acknowledge(workspace: Workspace, both: Sides) -> None:
    """Remember the weights there as seen, so that ours may replace them."""
    with translated():
        remote, file = workspace.registry.remote(both.name), both.file
        if remote is not None and file is not None:
            seen = replace(
                remote,
                remote_sha256=file.sha256 or remote.remote_sha256,
                files={**remote.files, file.path: file.blob_id},
            )
            workspace.registry.put_remote(both.name, seen)


def _has_more(workspace: Workspace, name: str) -> bool:
    """Whether anything here is not there yet."""
    with translated():
        remote = workspace.registry.remote(name)
    record = workspace.get(name)
    if remote is None:
        return False
    said = remote.said is not None and to_plain(document.said(record)) != remote.said
    return said or record.file_sha256 != remote.local_sha256


def _delete(workspace: Workspace, name: str, before: State, prefer: str | None, dry_run: bool) -> Synced:
    """Take an adapter off the Hub: its weights, and what lorahub wrote beside them."""
    both = state.sides(workspace, name, state.tracked(workspace, [name])[name])
    if both.file is not None and not state.is_last(both, both.file) and prefer != OURS:
        raise ConflictError(f"{name} was changed in {before.repo} since it was synced: delete it with --ours too")
    paths = [path for path in (both.remote.path, document.NAME) if path in both.snapshot.files]
    readme = both.snapshot.files.get(card.NAME)
    if readme is not None and card.is_generated(download(both.snapshot, readme).read_bytes()):
        paths += [card.NAME, *(path for path in both.snapshot.files if path.startswith("images/preview-"))]
    if not dry_run:
        publish.commit(both.snapshot, before.branch, Change(f"{name} removed by lorahub", {}, paths))
        with translated():
            workspace.registry.forget_remote(name)
    return Synced(name, DELETE, before)
