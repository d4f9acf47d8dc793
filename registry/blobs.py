"""Files by their content: `sha256/ab/cdef...`, in a local folder or at any fsspec URL.

A blob is complete under its name or absent: bytes go to `incoming/`, are hashed on the way, forced to the disk, and
only then renamed. A blob is never changed afterwards. Nothing here deletes on its own; `Registry.collect` does.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Protocol
from uuid import uuid4

from registry.errors import DamagedError, NotFoundError, ReadOnlyError, UnavailableError
from registry.records import check_sha256
from registry.sqlite_file import sync

CHUNK = 1 << 20
_NAME = re.compile(r"sha256/([0-9a-f]{2})/([0-9a-f]{62})", re.ASCII)


@dataclass(frozen=True)
class Blob:
    """One stored file; `modified` is when it was last put, None where the store does not say."""

    sha256: str
    size: int
    modified: datetime | None


class BlobStore(Protocol):
    """What a local and a remote store have in common. All methods raise UnavailableError when the store fails."""

    def put(self, source: Path | BinaryIO, *, expect: str | None = None) -> Blob:
        """Copy a file in; raises DamagedError, and stores nothing, unless its sha256 is `expect`."""

    def stat(self, sha256: str) -> Blob | None:
        """Size and age of a blob, None if it is not there; its bytes are not looked at."""

    def path(self, sha256: str) -> Path:
        """A local file with the blob's bytes, not to be written to; raises NotFoundError or DamagedError."""

    def verify(self, sha256: str) -> None:
        """Read the blob again; raises NotFoundError, or DamagedError if its bytes changed."""

    def quarantine(self, sha256: str) -> str:
        """Move a blob out of the way, keeping its bytes; returns where. Raises NotFoundError."""

    def delete(self, sha256: str) -> None:
        """Delete a blob for good; one that is not there is no error."""

    def blobs(self) -> Iterator[Blob]:
        """All blobs, in no order."""

    def sweep(self, before: datetime) -> int:
        """Delete unfinished copies last written before then; returns how many."""


def open_blobs(where: str | Path, cache: Path) -> BlobStore:
    """The store in a local folder, or at an fsspec URL such as `s3://bucket/prefix` with copies kept in `cache`."""
    if isinstance(where, Path) or "://" not in where:
        return LocalBlobs(Path(where))
    if where.startswith("file://"):
        return LocalBlobs(Path(where.removeprefix("file://")))
    from registry.remote_blobs import RemoteBlobs

    return RemoteBlobs(where, LocalBlobs(cache))


class LocalBlobs:
    """Blobs in a local folder, made on the first put."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, source: Path | BinaryIO, *, expect: str | None = None) -> Blob:
        """See `BlobStore.put`. An existing blob of another size is damaged: it is quarantined and replaced."""
        incoming = self.root / "incoming" / uuid4().hex
        try:
            with self._translated():
                incoming.parent.mkdir(parents=True, exist_ok=True)
                with opened(source) as reader, incoming.open("xb") as writer:
                    sha256, size = copy(reader, writer)
                    writer.flush()
                    os.fsync(writer.fileno())
                check_expected(sha256, expect, source)
                return self._publish(incoming, sha256, size)
        finally:
            with suppress(OSError):  # the error that brought us here says more
                incoming.unlink(missing_ok=True)

    def stat(self, sha256: str) -> Blob | None:
        """See `BlobStore.stat`."""
        place = self._place(sha256)
        with self._translated():
            try:
                status = place.stat()
            except FileNotFoundError:
                return None
        return Blob(sha256, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))

    def path(self, sha256: str) -> Path:
        """See `BlobStore.path`."""
        if self.stat(sha256) is None:
            raise NotFoundError(f"no blob {sha256[:12]} in {self.root}: add the file again")
        return self._place(sha256)

    def verify(self, sha256: str) -> None:
        """See `BlobStore.verify`."""
        with self.path(sha256).open("rb") as reader:
            check_same(sha256, copy(reader, None)[0], str(self.root))

    def quarantine(self, sha256: str) -> str:
        """See `BlobStore.quarantine`."""
        place = self.path(sha256)
        target = self.root / "quarantine" / f"{sha256}-{uuid4().hex}"
        with self._translated():
            target.parent.mkdir(parents=True, exist_ok=True)
            place.rename(target)
            sync(place.parent)
        return str(target)

    def delete(self, sha256: str) -> None:
        """See `BlobStore.delete`."""
        with self._translated():
            self._place(sha256).unlink(missing_ok=True)

    def blobs(self) -> Iterator[Blob]:
        """See `BlobStore.blobs`. Files that are not named like blobs are passed over."""
        for place in (self.root / "sha256").glob("??/*"):
            match = _NAME.fullmatch(place.relative_to(self.root).as_posix())
            blob = self.stat(match[1] + match[2]) if match else None
            if blob is not None:  # None when another process deleted it meanwhile
                yield blob

    def sweep(self, before: datetime) -> int:
        """See `BlobStore.sweep`."""
        count = 0
        for place in (self.root / "incoming").glob("*"):
            with self._translated(), suppress(FileNotFoundError):
                if datetime.fromtimestamp(place.stat().st_mtime, UTC) < before:
                    place.unlink()
                    count += 1
        return count

    def _place(self, sha256: str) -> Path:
        check_sha256(sha256)
        return self.root / "sha256" / sha256[:2] / sha256[2:]

    def _publish(self, incoming: Path, sha256: str, size: int) -> Blob:
        place = self._place(sha256)
        try:
            if place.stat().st_size != size:
                self.quarantine(sha256)
            else:
                os.utime(place)  # young again: a collection that began before this put must not take it
                return Blob(sha256, size, datetime.now(UTC))
        except FileNotFoundError:
            pass
        for folder in (place.parent.parent, place.parent):
            if not folder.exists():
                folder.mkdir(parents=True, exist_ok=True)
                sync(folder.parent)
        incoming.chmod(0o444)
        incoming.replace(place)
        sync(place.parent)
        return Blob(sha256, size, datetime.now(UTC))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except PermissionError as error:
            raise ReadOnlyError(f"cannot write to {self.root} ({error.strerror}): check its permissions") from error
        except OSError as error:
            if error.errno == errno.EROFS:
                raise ReadOnlyError(f"cannot write to {self.root} ({error.strerror})") from error
            raise UnavailableError(f"{self.root} cannot be used ({error.strerror}): check the disk") from error


@contextmanager
def opened(source: Path | BinaryIO) -> Iterator[BinaryIO]:
    """The source as a stream; a stream that was given stays open. Raises NotFoundError or UnavailableError."""
    if not isinstance(source, Path):
        yield source
        return
    try:
        stream = source.open("rb")
    except FileNotFoundError as error:
        raise NotFoundError(f"no file {source}") from error
    except OSError as error:
        raise UnavailableError(f"cannot read {source} ({error.strerror})") from error
    with stream:
        yield stream


def copy(reader: BinaryIO, writer: BinaryIO | None) -> tuple[str, int]:
    """Copy to the end, hashing on the way; returns sha256 and size. Without a writer, only read."""
    digest, size = hashlib.sha256(), 0
    while chunk := reader.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
        if writer is not None:
            writer.write(chunk)
    return digest.hexdigest(), size


def check_expected(sha256: str, expect: str | None, source: object) -> None:
    """Raise DamagedError unless the bytes that were read have the hash that was promised, if one was."""
    if expect is not None and sha256 != expect:
        raise DamagedError(f"expected sha256:{expect[:12]} from {source}, got sha256:{sha256[:12]}: nothing was stored")


def check_same(sha256: str, actual: str, where: str) -> None:
    """Raise DamagedError unless a blob's bytes have the hash it is named after."""
    if actual != sha256:
        raise DamagedError(f"blob {sha256[:12]} in {where} now has sha256:{actual[:12]}: quarantine it, get it again")
