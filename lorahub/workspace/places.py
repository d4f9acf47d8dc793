"""Files in folders: which root one belongs to, whether it is as it was recorded, and what to call it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from lorahub.files.paths import display_name
from registry import Location, suggest_name

RACY_NS = 2_000_000_000
"""Some file systems keep times in steps of two seconds."""


def known_root(wanted: str, known: Sequence[str]) -> tuple[str, str]:
    """(root, path below it): a folder inside one that is recorded belongs to that one, so no file is recorded twice."""
    above = [root for root in known if wanted == root or wanted.startswith(root.rstrip("/") + "/")]
    root = max(above, key=len, default=wanted)
    return root, wanted[len(root) :].strip("/")


def unchanged(place: Location, status: os.stat_result) -> bool:
    """Whether the file need not be read again: as it was, and its time far enough from when it was read to tell."""
    same = (place.size, place.mtime_ns) == (status.st_size, status.st_mtime_ns)
    same = same and (place.inode, place.device) == (status.st_ino, status.st_dev)
    if not same or place.seen_at is None:
        return False
    return status.st_mtime_ns < place.seen_at.timestamp() * 1e9 - RACY_NS


def names(root: str, relpath: str) -> Iterator[str]:
    """Names for a file, best first: its own, that with its folders before it, then with a number after it."""
    path = Path(root) / relpath
    own = display_name(path)
    folders = [folder for folder in Path(relpath).parent.parts if folder != own] or [Path(root).name]
    name = suggest_name(own)
    yield name
    longer = own
    for folder in reversed(folders):
        longer = f"{folder}-{longer}"
        yield suggest_name(longer)
    for number in count(2):
        yield f"{name[:190]}-{number}"
