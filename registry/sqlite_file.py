"""The SQLite file as a file: is it intact, copy it, set it aside. Nothing is ever deleted or replaced in silence."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

from registry.errors import DamagedError, ReadOnlyError, UnavailableError

_MAGIC = b"SQLite format 3\0"
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "lustre", "ceph", "afs", "gpfs", "glusterfs", "beegfs"}
_NETWORK |= {"fuse.sshfs", "fuse.rclone", "fuse.s3fs", "fuse.glusterfs", "fuse.ceph", "davfs", "fuse.davfs2"}


def check_file(path: Path) -> None:
    """Look at the first page only, in constant time.

    Raises:
        DamagedError: the file is empty, zeroed, truncated, or no SQLite database.
        UnavailableError: it cannot be read.
    """
    log = path.with_name(f"{path.name}-wal")
    try:
        with path.open("rb") as stream:
            header = stream.read(100)
            size = os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise UnavailableError(f"cannot read {path} ({error.strerror}): check its permissions and the disk") from error
    if not header.startswith(_MAGIC) or len(header) < 100:
        what = "empty" if not size else "all zeros" if not any(header) else "no SQLite database"
        raise _damaged(path, f"the file is {what}")
    page = int.from_bytes(header[16:18], "big")
    expected = int.from_bytes(header[28:32], "big") * (65536 if page == 1 else page)
    # The page count is current only if both change counters agree; while a log exists, the log is the truth.
    if header[24:28] == header[92:96] and size < expected and not (log.exists() and log.stat().st_size):
        raise _damaged(path, f"it has {size} bytes, its header says {expected}")


def backup(path: Path, folder: Path, label: str) -> Path:
    """A consistent copy of the live database in `folder`, complete under its final name or absent."""
    target = folder / f"{path.stem}-{label}-{_stamp()}.db"
    partial = target.with_suffix(f".partial-{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=30)) as source, closing(sqlite3.connect(partial)) as copy:
            source.backup(copy)
        sync(partial)
        partial.rename(target)
    except PermissionError as error:
        raise ReadOnlyError(f"cannot write a backup to {folder} ({error.strerror}): check its permissions") from error
    except (OSError, sqlite3.OperationalError) as error:
        raise UnavailableError(f"cannot back up {path} to {target} ({error}): make room, then try again") from error
    finally:
        with suppress(OSError):  # the error that brought us here says more
            partial.unlink(missing_ok=True)
    return target


def set_aside(path: Path) -> Path | None:
    """Rename a database and its log out of the way; nothing is deleted. None when there was neither.

    The log goes even when it is alone: SQLite would replay it into the next database of that name.
    """
    target = path.with_name(f"{path.name}.damaged-{_stamp()}")
    parts = [suffix for suffix in ("-wal", "-shm", "") if path.with_name(path.name + suffix).exists()]
    for suffix in parts:
        path.with_name(path.name + suffix).rename(target.with_name(target.name + suffix))
    return target if parts else None


def use_journal(path: Path) -> str:
    """Choose the journal mode of a new database, and return it: `wal`, or `delete` where WAL cannot work.

    WAL needs shared memory between all who have the database open, which network file systems do not give.
    """
    wanted = "delete" if network_type(path) else "wal"
    with closing(sqlite3.connect(path)) as connection:
        return str(connection.execute(f"PRAGMA journal_mode={wanted}").fetchone()[0])


def network_type(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str | None:
    """The kind of network file system `path` lies on; None on a local disk, or where the system does not say."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    place = str(path.absolute())
    best = ("", "")
    for line in lines:
        _, point, kind, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best[0]):
            best = (point, kind)
    return best[1] if best[1] in _NETWORK else None


def sync(path: Path) -> None:
    """Force a file, or a folder's entries, to the disk. Windows cannot open folders and orders their entries itself."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")


def _damaged(path: Path, what: str) -> DamagedError:
    return DamagedError(f"{path} is damaged ({what}): run `lorahub db rebuild`, or restore a backup")
