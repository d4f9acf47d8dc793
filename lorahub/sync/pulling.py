"""Pull: one adapter from any repository into the registry.

The rule: the header is read first, so that what is wrong is known before gigabytes move; everything is pinned to one
commit; and the bytes enter the store only with the hash the Hub announces.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from lorahub.errors import ConflictError, NotFoundError, UsageError, VerificationError
from lorahub.hub import publish
from lorahub.hub.heading import read_heading
from lorahub.hub.reference import HubReference, parse
from lorahub.hub.repository import RemoteFile, Snapshot, choose, download, look
from lorahub.sync import document, local, taking
from lorahub.sync.document import Document
from lorahub.sync.taking import Found
from lorahub.workspace.core import Workspace
from lorahub.workspace.errors import translated
from registry import Remote, suggest_name
from registry.names import name_key

NEW, UPDATED, KNOWN = "new", "updated", "known"


@dataclass(frozen=True)
class Pulled:
    """What a pull did: a `new` adapter, one that was `updated` by another version, or one that was `known`.

    `branch` is what a sync follows from now on, None for a pull that was pinned to a tag or a commit. `downloaded` says
    whether the weights had to be transferred; `rebuilt` that they were made again from their parents instead.
    """

    reference: str
    repo: str
    branch: str | None
    commit: str
    path: str
    sha256: str | None
    size: int
    base: str | None
    evidence: tuple[str, ...]
    outcome: str
    downloaded: bool
    rebuilt: bool
    notes: tuple[str, ...]


def pull(
    workspace: Workspace,
    reference: str,
    *,
    file: str | None = None,
    name: str | None = None,
    base: str | None = None,
    rebuild: bool = False,
    force: bool = False,
    dry_run: bool = False,
) -> Pulled:
    """Bring `user/repo[@revision][:file]` into the registry, under the name it is tracked by, or says, or `name`.

    base: the base model it must be for. rebuild: make a merged adapter again from its parents, which are pulled as far as
    they are not here, and prove that it is the same to the bit. force: take it although there are changes here that
    were not pushed (they stay, as older versions).
    Raises BaseMismatchError, FileFormatError and ConflictError before anything is downloaded; VerificationError for
    bytes that are not those announced; NotFoundError, AuthError and NetworkError as the Hub answers.
    """
    wanted = parse(reference)
    if file is not None:
        wanted = replace(wanted, file=file)
    snapshot = look(wanted.repo, wanted.revision, what=reference)
    chosen = choose(snapshot, wanted)
    heading = read_heading(snapshot, chosen)
    if base is not None:
        heading.expect_base(base, reference)
    told, notes = _told(snapshot, chosen)
    branch = _branch(snapshot, wanted)
    target, known = _name(
        workspace, {wanted.repo, snapshot.repo}, snapshot, chosen, told, name, follow=branch is not None
    )
    if known is not None and not force:
        _check_here(workspace, target, known, chosen)
    sha256 = chosen.sha256
    there = _versions(workspace, target)
    outcome = (KNOWN if sha256 in there else UPDATED) if there else NEW
    done = Pulled(
        target, snapshot.repo, branch, snapshot.commit, chosen.path, sha256, chosen.size, heading.detection.base,
        heading.detection.evidence, outcome, False, rebuild, notes,
    )  # fmt: skip
    if dry_run:
        return done
    with _file(workspace, snapshot, chosen, told, rebuild) as (path, downloaded):
        found = Found(snapshot, chosen, heading, told, branch, known)
        record, remote_sha256 = taking.take(workspace, target, path, found)
    if record.file_sha256 in there:  # a PEFT folder is known by what it becomes
        outcome = KNOWN
    return replace(
        done, reference=record.reference, sha256=remote_sha256, downloaded=downloaded, base=record.base, outcome=outcome
    )


def _told(snapshot: Snapshot, chosen: RemoteFile) -> tuple[Document | None, tuple[str, ...]]:
    """What lorahub.json says, if it is there and about these very weights; and what the user should know of it."""
    note = snapshot.files.get(document.NAME)
    if note is None or note.size > document.MAX_SIZE:
        return None, ()
    content = download(snapshot, note).read_bytes()
    try:
        told = document.read(content, snapshot.repo)
    except VerificationError as error:
        return None, (f"{error}: only the weights were taken",)
    if told.file.path != chosen.path:
        return None, ()
    if chosen.sha256 not in (None, told.file.sha256):
        return (
            replace(told, parents=(), recipe=None, validations=()),
            ("the weights were changed since lorahub.json was written: its lineage and checks were left out",),
        )
    return told, ()


def _branch(snapshot: Snapshot, wanted: HubReference) -> str | None:
    """The branch that is followed from now on."""
    if wanted.revision is None:
        return "main"
    return wanted.revision if publish.is_branch(snapshot.repo, wanted.revision) else None


def _name(
    workspace: Workspace,
    repos: Set[str],
    snapshot: Snapshot,
    chosen: RemoteFile,
    told: Document | None,
    name: str | None,
    *,
    follow: bool,
) -> tuple[str, Remote | None]:
    """What the adapter is to be called, and its place on the Hub if it has been synced with this one.

    follow: off for a pinned pull, which is no next version of what is synced unless somebody says so by name.
    """
    with translated():
        remotes = workspace.registry.remotes()
    same = {key: each for key, each in remotes.items() if each.repo in repos and each.path == chosen.path}
    if name is not None:
        return name, next((each for key, each in same.items() if name_key(key) == name_key(name)), None)
    if same and follow:
        return next(iter(same.items()))
    several = sum(path.endswith(".safetensors") for path in snapshot.files) > 1
    alone = Path(chosen.path).stem if several and "/" not in chosen.path else snapshot.repo.partition("/")[2]
    candidate = suggest_name(told.name if told is not None else alone)
    taken = _versions(workspace, candidate)
    if taken and chosen.sha256 not in taken:
        raise ConflictError(f"{candidate} is another adapter here: call this one otherwise with --name")
    return candidate, None


def _versions(workspace: Workspace, name: str) -> frozenset[str]:
    try:
        with translated():
            return frozenset(record.file_sha256 for record in workspace.registry.versions(name))
    except NotFoundError:
        return frozenset()


def _check_here(workspace: Workspace, name: str, known: Remote, chosen: RemoteFile) -> None:
    record = local.newest(workspace, name)
    if record is None or record.file_sha256 in (known.local_sha256, chosen.sha256):
        return
    if chosen.sha256 != known.remote_sha256:
        raise ConflictError(
            f"{name} was changed here and in {known.repo}: run `lorahub sync {name}`, or pull with --force"
        )
    raise ConflictError(
        f"{record.reference} was not pushed yet, and {known.repo} holds what it was made from: run `lorahub push {name}`, "
        "or pull with --force to go back"
    )


@contextmanager
def _file(
    workspace: Workspace, snapshot: Snapshot, chosen: RemoteFile, told: Document | None, rebuild: bool
) -> Iterator[tuple[Path, bool]]:
    """The weights as a file, and whether they were downloaded for it."""
    if rebuild:
        if told is None or told.recipe is None or chosen.sha256 is None:
            raise UsageError(f"{snapshot.repo} does not say how {chosen.path} was made: pull it without --rebuild")
        from lorahub.sync import rebuilding  # imports torch

        with TemporaryDirectory(prefix="lorahub-") as folder:
            yield rebuilding.rebuilt(workspace, told, told.recipe, Path(folder)), False
        return
    stored = _stored(workspace, chosen)
    yield (stored, False) if stored is not None else (download(snapshot, chosen), True)


def _stored(workspace: Workspace, chosen: RemoteFile) -> Path | None:
    """The same bytes, if the store has them already."""
    with translated():
        blobs = workspace.registry.blobs
        if chosen.sha256 is None or blobs.stat(chosen.sha256) is None:
            return None
        path = blobs.path(chosen.sha256)
    return path if chosen.is_same(path) else None
