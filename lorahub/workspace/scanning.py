"""Index folders where they are. Nothing is ever written to them.

Two phases: headers first, in transactions of some hundred files, then the bytes, a file at a time, so that an interrupted
scan goes on where it was. The rule: what is recorded is what was read; a file is looked at again when its size, time, inode
or device changed, or when it changed so shortly before it was read that its time could not tell (the racy rule of git).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorahub.errors import LorahubError, NotFoundError, UsageError
from lorahub.workspace.core import Workspace
from lorahub.workspace.errors import translated
from lorahub.workspace.facts import Found, full_facts, header_facts, location
from lorahub.workspace.places import known_root, names, unchanged
from lorahub.workspace.walking import File, Walk
from registry import Location

BATCH = 200

_Identity = tuple[int, int, int, int]
"""inode, device, size, time: what a file keeps when it is renamed"""


@dataclass(frozen=True)
class Scanned:
    """What a scan of roots did. Paths are as the system spells them."""

    roots: tuple[str, ...]
    files: int
    new: int
    moved: int
    replaced: int
    unchanged: int
    returned: int
    missing: int
    hashed: int
    to_hash: int
    """Files that are not hashed yet, or whose changed content is not recorded yet."""
    skipped: tuple[tuple[str, str], ...]
    """(path, reason)"""
    offline: tuple[str, ...]
    """Roots that are not there, or hold nothing of what they held: an unmounted drive, perhaps."""

    @property
    def partial(self) -> bool:
        return bool(self.skipped or self.offline)


@dataclass
class _Tally:
    files: int = 0
    new: int = 0
    moved: int = 0
    replaced: int = 0
    unchanged: int = 0
    returned: int = 0
    missing: int = 0
    hashed: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    offline: list[str] = field(default_factory=list)
    pending: dict[tuple[str, str], None] = field(default_factory=dict)
    """(root, relpath) of what is to be hashed, in order"""


def scan(
    workspace: Workspace,
    roots: Sequence[str | Path] = (),
    *,
    hash: bool = True,
    weights: bool = False,
    follow_links: bool = False,
    dry_run: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Scanned:
    """Index the adapter files under `roots`; without any, under every root that is known.

    hash: also read the bytes of what is new or changed. weights: and the weights, for fingerprints and norms, of what
    was hashed before, too.
    progress: called with (phase, done, all), in files while reading headers and in bytes while hashing.
    Raises NotFoundError for a root that is not there and was never scanned, UsageError for one that is no folder.
    """
    with translated():
        known = workspace.registry.roots()
    wanted = [os.path.abspath(root) for root in roots] or list(known)  # noqa: PTH100
    tally = _Tally()
    inner = [root for root in known if any(root.startswith(f"{outer.rstrip('/')}/") for outer in wanted)]
    for root in dict.fromkeys([*wanted, *inner]):
        _scan_root(workspace, root, known, tally, follow_links=follow_links, dry_run=dry_run, progress=progress)
    if weights:
        _add_unread_weights(workspace, wanted, tally)
    to_hash = len(tally.pending)
    if hash and not dry_run:
        to_hash = _hash(workspace, tally, weights, progress)
    return Scanned(
        tuple(wanted), tally.files, tally.new, tally.moved, tally.replaced, tally.unchanged, tally.returned,
        tally.missing, tally.hashed, to_hash, tuple(tally.skipped), tuple(tally.offline),
    )  # fmt: skip


def _scan_root(
    workspace: Workspace,
    wanted: str,
    known: Sequence[str],
    tally: _Tally,
    *,
    follow_links: bool,
    dry_run: bool,
    progress: Callable[[str, int, int], None] | None,
) -> None:
    """One folder: compare it with what is recorded, then record what is new, moved or gone."""
    root, under = known_root(wanted, known)
    with translated():
        recorded = {
            place.relpath: place
            for place in workspace.registry.locations(root=root)
            if not under or place.relpath == under or place.relpath.startswith(f"{under}/")
        }
    if not _is_there(wanted, known=bool(recorded)):
        tally.offline.append(wanted)
        tally.missing += _mark_missing(workspace, root, recorded.values(), dry_run)
        return
    elsewhere = [other[len(root) :].strip("/") for other in known if other.startswith(f"{root.rstrip('/')}/")]
    walk = Walk(Path(root), follow_links, under, frozenset(elsewhere) - {under})
    fresh: list[File] = []
    back: list[str] = []
    seen: set[str] = set()
    for file in walk.files():
        seen.add(file.relpath)
        place = recorded.get(file.relpath)
        if place is None:
            fresh.append(file)
        elif unchanged(place, file.status):
            tally.unchanged += 1
            if place.missing_since is not None:
                back.append(file.relpath)
        else:
            tally.pending[root, file.relpath] = None
    tally.files += len(seen)
    tally.skipped += walk.skipped
    unread = tuple(f"{folder}/" for folder in walk.unread if folder)
    gone = [] if "" in walk.unread else [
        place for path, place in recorded.items() if path not in seen and not path.startswith(unread or ("\0",))
    ]  # fmt: skip
    if recorded and len(gone) == len(recorded) and not seen:
        tally.offline.append(wanted)
    if not dry_run:
        gone = _index(workspace, root, fresh, gone, tally, progress)
        if back:
            with translated():
                tally.returned += workspace.registry.mark_present(root, back)
    else:
        tally.new += len(fresh)
    tally.missing += _mark_missing(workspace, root, gone, dry_run)
    with translated():
        for place in workspace.registry.locations(root=root, missing=False, hashed=False):
            if not under or place.relpath.startswith(f"{under}/"):
                tally.pending[root, place.relpath] = None


def _is_there(wanted: str, *, known: bool) -> bool:
    """Whether the folder can be walked; a known one that is gone is offline, anything else is a mistake."""
    there, folder = Path(wanted).exists(), Path(wanted).is_dir()
    if there and not folder:
        raise UsageError(f"{wanted} is no folder: scan takes folders, `lorahub add --in-place` takes files")
    if not there and not known:
        raise NotFoundError(f"no such folder: {wanted}")
    return folder


def _add_unread_weights(workspace: Workspace, wanted: Sequence[str], tally: _Tally) -> None:
    """What was hashed without its weights being read, and lies under one of these folders."""
    with translated():
        unread = {record.reference for record in workspace.registry.find() if record.fingerprint is None}
        for place in workspace.registry.locations(missing=False, hashed=True):
            path = str(Path(place.root) / place.relpath)
            if place.reference in unread and path.startswith(tuple(f"{root.rstrip('/')}/" for root in wanted)):
                tally.pending[place.root, place.relpath] = None


def _mark_missing(workspace: Workspace, root: str, gone: Iterable[Location], dry_run: bool) -> int:
    paths = [place.relpath for place in gone if place.missing_since is None]
    if paths and not dry_run:
        with translated():
            workspace.registry.mark_missing(root, paths)
    return len(paths)


def _index(
    workspace: Workspace,
    root: str,
    fresh: list[File],
    gone: list[Location],
    tally: _Tally,
    progress: Callable[[str, int, int], None] | None,
) -> list[Location]:
    """Record files never seen, from their headers; returns which of `gone` were not found under another name."""
    if not fresh:
        return gone
    with translated():
        places = workspace.registry.locations()
    elsewhere = {_identity(place): place for place in places}
    lost = {(place.root, place.relpath) for place in gone}
    done = 0
    for start in range(0, len(fresh), BATCH):
        batch = fresh[start : start + BATCH]
        found = _read_headers(root, batch, elsewhere, tally)  # outside the transaction: others may write meanwhile
        with workspace.transaction():
            for file, facts in found:
                if facts is None:
                    _record_twin(workspace, root, file, elsewhere, lost, tally)
                    continue
                here = replace(facts.location(root, file.relpath), seen_at=facts.read_at)
                reference, outcome = workspace.registry.place(here, facts.facts, names=names(root, file.relpath))
                elsewhere[_identity(here)] = replace(here, reference=reference)
                tally.new += outcome == "new"
        done += len(batch)
        if progress is not None:
            progress("headers", done, len(fresh))
    return [place for place in gone if (place.root, place.relpath) in lost]


def _read_headers(
    root: str, files: list[File], elsewhere: Mapping[_Identity, Location], tally: _Tally
) -> list[tuple[File, Found | None]]:
    """What each header says; None for a file that is the same as one that is recorded, or as one before it."""
    found: list[tuple[File, Found | None]] = []
    read: set[_Identity] = set()
    for file in files:
        identity = _identity_of(file.status)
        if file.status.st_ino and (identity in elsewhere or identity in read):
            found.append((file, None))
            continue
        try:
            found.append((file, header_facts(Path(root) / file.relpath, beside=file.beside)))
            read.add(identity)
        except LorahubError as error:
            tally.skipped.append((str(Path(root) / file.relpath), str(error)))
    return found


def _record_twin(
    workspace: Workspace,
    root: str,
    file: File,
    elsewhere: Mapping[_Identity, Location],
    lost: set[tuple[str, str]],
    tally: _Tally,
) -> None:
    """A file with the inode, size and time of a recorded one: that file under another name, or another hard link to it."""
    twin = elsewhere[_identity_of(file.status)]
    here = replace(location(root, file.relpath, file.status), seen_at=twin.seen_at)
    if (twin.root, twin.relpath) in lost or not os.path.lexists(Path(twin.root) / twin.relpath):
        if workspace.registry.move(twin, here):
            lost.discard((twin.root, twin.relpath))
            tally.moved += 1
    elif twin.reference is not None:
        workspace.registry.locate(twin.reference, here)
        tally.new += 1


def _identity(place: Location) -> _Identity:
    return place.inode, place.device, place.size, place.mtime_ns


def _identity_of(status: os.stat_result) -> _Identity:
    return status.st_ino, status.st_dev, status.st_size, status.st_mtime_ns


def _hash(workspace: Workspace, tally: _Tally, weights: bool, progress: Callable[[str, int, int], None] | None) -> int:
    """Read what is pending, each file recorded as soon as it is read; returns how many could not be."""
    files = [(root, relpath, Path(root) / relpath) for root, relpath in tally.pending]
    sizes = [path.stat().st_size if path.is_file() else 0 for _, _, path in files]
    done, total, failed = 0, sum(sizes), 0
    for (root, relpath, path), size in zip(files, sizes, strict=True):
        try:
            found = full_facts(path, weights=weights)
        except LorahubError as error:
            tally.skipped.append((str(path), str(error)))
            failed += 1
            continue
        here = replace(found.location(root, relpath), seen_at=found.read_at)
        with workspace.transaction():
            reference, outcome = workspace.registry.place(
                here, found.facts, names=names(root, relpath), norms=found.norms
            )
            workspace.registry.record_validations(reference, found.findings)
            if found.sketch is not None:
                workspace.registry.put_sketch(reference, found.sketch)
        tally.hashed += 1
        tally.moved += outcome == "moved"
        tally.replaced += outcome == "replaced"
        done += size
        if progress is not None:
            progress("hashing", done, total)
    return failed
