"""Blobs at an fsspec URL, shared by a team, with verified local copies; layout and order as in the local store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, cast
from uuid import uuid4

import fsspec

from registry.blobs import Blob, LocalBlobs, check_expected, check_same, copy, opened
from registry.errors import DeniedError, InvalidError, NotFoundError, RegistryError, UnavailableError, UnreachableError
from registry.records import check_sha256

_WITH_BUCKETS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss"})
"""Protocols of object stores: they have no folders to make, and what fsspec would make there is a bucket."""


class RemoteBlobs:
    """Blobs at an fsspec URL. `cache` keeps local copies; it may be deleted at any time.

    Raises:
        InvalidError: the URL's protocol is unknown, or needs a package that is not installed.
    """

    def __init__(self, url: str, cache: LocalBlobs) -> None:
        self.url = url
        self.cache = cache
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise InvalidError(f"cannot open the store {url}: {' '.join(str(error).split())}") from error
        self._root = self._root.rstrip("/")
        protocol = self._files.protocol
        self._has_buckets = not _WITH_BUCKETS.isdisjoint((protocol,) if isinstance(protocol, str) else protocol)

    def put(self, source: Path | BinaryIO, *, expect: str | None = None) -> Blob:
        """See `BlobStore.put`."""
        incoming = f"{self._root}/incoming/{uuid4().hex}"
        with self._translated():
            try:
                self._make_folder(f"{self._root}/incoming")
                with opened(source) as reader, self._files.open(incoming, "wb") as writer:
                    sha256, size = copy(reader, cast("BinaryIO", writer))
                check_expected(sha256, expect, source)
                return self._publish(incoming, sha256, size)
            finally:
                # Whatever goes wrong here, the error that brought us here says more, and `sweep` comes by later.
                with suppress(Exception):
                    self._files.rm_file(incoming)

    def stat(self, sha256: str) -> Blob | None:
        """See `BlobStore.stat`."""
        status = self._status(sha256)
        if status is None:
            return None
        return Blob(sha256, int(status["size"]), self._modified(self._place(sha256), status))

    def path(self, sha256: str) -> Path:
        """See `BlobStore.path`; downloads into the cache, and verifies, what is not there yet."""
        if self.cache.stat(sha256) is None:
            if self._status(sha256) is None:
                raise NotFoundError(f"no blob {sha256[:12]} in {self.url}: add the file again")
            with self._translated(), self._files.open(self._place(sha256), "rb") as reader:
                self.cache.put(cast("BinaryIO", reader), expect=sha256)
        return self.cache.path(sha256)

    def verify(self, sha256: str) -> None:
        """See `BlobStore.verify`; reads the remote bytes, not the cache."""
        if self._status(sha256) is None:
            raise NotFoundError(f"no blob {sha256[:12]} in {self.url}: add the file again")
        with self._translated(), self._files.open(self._place(sha256), "rb") as reader:
            check_same(sha256, copy(cast("BinaryIO", reader), None)[0], self.url)

    def quarantine(self, sha256: str) -> str:
        """See `BlobStore.quarantine`; the cached copy goes too."""
        if self._status(sha256) is None:
            raise NotFoundError(f"no blob {sha256[:12]} in {self.url}: add the file again")
        target = f"{self._root}/quarantine/{sha256}-{uuid4().hex}"
        with self._translated():
            self._make_folder(f"{self._root}/quarantine")
            self._files.mv(self._place(sha256), target)
        self.cache.delete(sha256)
        return str(self._files.unstrip_protocol(target))

    def delete(self, sha256: str) -> None:
        """See `BlobStore.delete`; the cached copy goes too."""
        with self._translated(), suppress(FileNotFoundError):
            self._files.rm_file(self._place(sha256))
        self.cache.delete(sha256)

    def blobs(self) -> Iterator[Blob]:
        """See `BlobStore.blobs`."""
        for path, status in self._listing("sha256"):
            name = "".join(path.rsplit("/", 2)[-2:])
            with suppress(InvalidError):  # not named like a blob: not ours
                yield Blob(check_sha256(name), int(status["size"]), self._modified(path, status))

    def sweep(self, before: datetime) -> int:
        """See `BlobStore.sweep`."""
        count = 0
        for path, status in self._listing("incoming"):
            modified = self._modified(path, status)
            if modified is not None and modified < before:
                with self._translated(), suppress(FileNotFoundError):
                    self._files.rm_file(path)
                    count += 1
        return count

    def _publish(self, incoming: str, sha256: str, size: int) -> Blob:
        place = self._place(sha256)
        status = self._status(sha256)
        if status is not None and int(status["size"]) != size:
            self.quarantine(sha256)
        # An existing blob is moved over, same bytes for same bytes: no store but a file system can make it young again.
        self._make_folder(place.rsplit("/", 1)[0])
        self._files.mv(incoming, place)
        self._files.invalidate_cache()
        status = self._status(sha256)
        if status is None or int(status["size"]) != size:
            raise UnavailableError(f"{self.url} does not show what was just stored: try again")
        return Blob(sha256, size, datetime.now(UTC))

    def _make_folder(self, path: str) -> None:
        if not self._has_buckets:
            self._files.makedirs(path, exist_ok=True)

    def _place(self, sha256: str) -> str:
        check_sha256(sha256)
        return f"{self._root}/sha256/{sha256[:2]}/{sha256[2:]}"

    def _status(self, sha256: str) -> dict[str, Any] | None:
        place = self._place(sha256)
        with self._translated():
            try:
                self._files.invalidate_cache(place.rsplit("/", 1)[0])  # others write here too
                status = self._files.info(place)
            except FileNotFoundError:
                return None
        return dict(status) if status["type"] == "file" else None

    def _listing(self, folder: str) -> list[tuple[str, dict[str, Any]]]:
        with self._translated():
            self._files.invalidate_cache()
            try:
                return list(self._files.find(f"{self._root}/{folder}", detail=True).items())
            except FileNotFoundError:
                return []

    def _modified(self, path: str, status: dict[str, Any]) -> datetime | None:
        value = status.get("LastModified") or status.get("mtime") or status.get("created")
        if value is None:
            try:
                value = self._files.modified(path)
            except (NotImplementedError, FileNotFoundError):
                return None
        when = value if isinstance(value, datetime) else datetime.fromtimestamp(float(value), UTC)
        return when.replace(tzinfo=UTC) if when.tzinfo is None else when

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except RegistryError:
            raise
        except Exception as error:  # each fsspec back end has its own error classes
            what = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, FileNotFoundError) and self._has_buckets:
                raise NotFoundError(
                    f"the store {self.url} is in no bucket ({what}): make it, or mend the URL"
                ) from error
            if isinstance(error, PermissionError):
                raise DeniedError(f"the store {self.url} refuses the credentials ({what})") from error
            raise UnreachableError(f"the store {self.url} cannot be used ({what}): try again") from error
