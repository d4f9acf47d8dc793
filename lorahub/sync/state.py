"""How the registry and the Hub compare, adapter by adapter, by content ids: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lorahub.errors import AuthError, LorahubError, NotFoundError
from lorahub.hub.repository import RemoteFile, Snapshot, look
from lorahub.sync import document, local
from lorahub.workspace.core import Workspace
from lorahub.workspace.errors import translated
from lorahub.workspace.plain import to_plain
from registry import Remote, VersionRecord
from registry.names import name_key

SAME, AHEAD, BEHIND, DIVERGED = "same", "ahead", "behind", "diverged"
REMOVED, GONE, REFUSED = "removed", "gone", "refused"


@dataclass(frozen=True)
class State:
    """One adapter and its place on the Hub.

    status: `same`, `ahead` (changed here), `behind` (changed there), `diverged` (both), `removed` (in the trash here),
    `gone` (no longer there), `refused` (the Hub does not let us look). `here` and `there` are what was changed:
    `weights`, and `record` for what is said of them.
    """

    name: str
    status: str
    reference: str | None
    repo: str
    branch: str
    path: str
    commit: str | None
    local_sha256: str | None
    remote_sha256: str | None
    here: tuple[str, ...] = ()
    there: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Sides:
    """Everything that a comparison looks at."""

    name: str
    remote: Remote
    record: VersionRecord | None
    snapshot: Snapshot

    @property
    def file(self) -> RemoteFile | None:
        return self.snapshot.files.get(self.remote.path)

    @property
    def note(self) -> RemoteFile | None:
        return self.snapshot.files.get(document.NAME)


def status(workspace: Workspace, names: Iterable[str] = ()) -> tuple[State, ...]:
    """How these adapters (all that were pushed or pulled, if none is named) compare with the Hub.

    Raises NotFoundError for a name that was never on the Hub, NetworkError when the Hub cannot be reached.
    """
    looked: dict[tuple[str, str], Snapshot | LorahubError] = {}
    return tuple(_state(workspace, name, remote, looked) for name, remote in tracked(workspace, names).items())


def tracked(workspace: Workspace, names: Iterable[str]) -> dict[str, Remote]:
    """Where these adapters are on the Hub, or all; raises NotFoundError for one that was never there."""
    with translated():
        known = workspace.registry.remotes()
    names, by_key = tuple(names), {name_key(name): name for name in known}
    missing = next((name for name in names if name_key(name) not in by_key), None)
    if missing is not None:
        raise NotFoundError(f"{missing} was not on the Hub before: `lorahub push {missing} --to USER/REPO`")
    return {by_key[name_key(name)]: known[by_key[name_key(name)]] for name in names} if names else known


def sides(workspace: Workspace, name: str, remote: Remote) -> Sides:
    """Look at both sides now; raises what `look` raises."""
    return Sides(name, remote, local.newest(workspace, name), look(remote.repo, remote.branch))


def compare(both: Sides) -> State:
    """What changed since both sides were last alike."""
    record, remote, file = both.record, both.remote, both.file
    seen = file.sha256 if file is not None else None
    if file is None:
        return _as(both, GONE, f"{both.snapshot.repo} no longer holds {remote.path}")
    if record is None:
        return _as(both, REMOVED, "it is in the trash here")
    here = ["weights"] if record.file_sha256 != remote.local_sha256 else []
    there = ["weights"] if not is_last(both, file) else []
    if here and there and seen == record.file_sha256:
        here, there = [], []
    if remote.said is not None and to_plain(document.said(record)) != remote.said:
        here.append("record")
    if both.note is not None and both.note.blob_id != remote.files.get(document.NAME):
        there.append("record")
    found = DIVERGED if here and there else AHEAD if here else BEHIND if there else SAME
    return _as(both, found, "", tuple(here), tuple(there))


def is_last(both: Sides, file: RemoteFile) -> bool:
    """Whether the file there is the one that was last synced."""
    if file.sha256 is not None:
        return file.sha256 == both.remote.remote_sha256
    return both.remote.files.get(file.path) == file.blob_id  # the Hub keeps it in git


def _as(both: Sides, found: str, reason: str, here: tuple[str, ...] = (), there: tuple[str, ...] = ()) -> State:
    record, file = both.record, both.file
    return State(
        both.name,
        found,
        record.reference if record is not None else None,
        both.snapshot.repo,
        both.remote.branch,
        both.remote.path,
        both.snapshot.commit,
        record.file_sha256 if record is not None else None,
        file.sha256 if file is not None else None,
        here,
        there,
        reason,
    )


def _state(
    workspace: Workspace, name: str, remote: Remote, looked: dict[tuple[str, str], Snapshot | LorahubError]
) -> State:
    place = (remote.repo, remote.branch)
    if place not in looked:
        try:
            looked[place] = look(*place)
        except (NotFoundError, AuthError) as error:
            looked[place] = error
    snapshot, record = looked[place], local.newest(workspace, name)
    if isinstance(snapshot, Snapshot):
        return compare(Sides(name, remote, record, snapshot))
    reference, sha256 = (record.reference, record.file_sha256) if record is not None else (None, None)
    found = GONE if isinstance(snapshot, NotFoundError) else REFUSED
    return State(name, found, reference, *place, remote.path, None, sha256, remote.remote_sha256, reason=str(snapshot))
