"""Find the adapter files of a folder, following nothing and waiting for nothing.

The rule: every file of that name is either yielded or listed with the reason why not. Names are as the system spells them,
undecodable bytes included; a folder that cannot be read is named, so that what lies in it is not taken for gone.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class File:
    """A regular file under a root; `beside` are the names in its folder."""

    relpath: str
    status: os.stat_result
    beside: frozenset[str]


@dataclass
class Walk:
    """A walk through `root`; `skipped` (path, reason) and `unread` (folders, relative) fill as it goes."""

    root: Path
    follow_links: bool = False
    under: str = ""
    without: frozenset[str] = frozenset()
    """Folders that are not entered."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    _seen: set[tuple[int, int]] = field(default_factory=set)

    def files(self) -> Iterator[File]:
        """Every regular adapter file, in the order of the names, a folder's files before its folders."""
        folders = [self.under]
        while folders:
            folder = folders.pop()
            entries = self._entries(folder)
            beside = frozenset(entry.name for entry in entries)
            inner = []
            for entry in entries:
                relpath = f"{folder}/{entry.name}" if folder else entry.name
                if relpath in self.without:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    inner.append(relpath)
                elif entry.name.lower().endswith(SUFFIX) or (self.follow_links and entry.is_symlink()):
                    found = self._look(entry, relpath, inner)
                    if found is not None:
                        yield File(relpath, found, beside)
            folders.extend(reversed(inner))

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        place = self.root / folder
        try:
            status = place.stat()
            if (status.st_dev, status.st_ino) in self._seen:
                self.skipped.append((str(place), "a folder that was visited already: a loop, or two links to it"))
                return []
            self._seen.add((status.st_dev, status.st_ino))
            with os.scandir(place) as listing:
                return sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            self.unread.append(folder)
            self.skipped.append((str(place), f"cannot be read ({error.strerror})"))
            return []

    def _look(self, entry: os.DirEntry[str], relpath: str, inner: list[str]) -> os.stat_result | None:
        """The status of an entry that is a file to index; a linked folder joins `inner` where links are followed."""
        try:
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                target = Path(os.path.realpath(entry.path))
                if not target.exists():
                    return self._skip(entry.path, "a link to nothing")
                if not self.follow_links:
                    return self._skip(entry.path, f"a link to {target}: scan that folder, or pass --follow-links")
                status = target.stat()
                if stat.S_ISDIR(status.st_mode):
                    inner.append(relpath)
                    return None
                if not entry.name.lower().endswith(SUFFIX):
                    return None
            if not stat.S_ISREG(status.st_mode):
                return self._skip(entry.path, f"no regular file but a {_kind(status.st_mode)}")
        except OSError as error:
            return self._skip(entry.path, f"cannot be read ({error.strerror})")
        return status

    def _skip(self, path: str, reason: str) -> os.stat_result | None:
        self.skipped.append((path, reason))
        return None


def _kind(mode: int) -> str:
    names = ((stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"), (stat.S_ISCHR, "device"), (stat.S_ISBLK, "device"))
    return next((name for test, name in names if test(mode)), "special file")
