"""One file that holds a manifest and other files: a plain tar, written whole or not at all, read without trust.

First comes `manifest.json`, then members whose names and sizes the manifest of this kind of bundle states. The reader
knows regular files with exactly these names, never unpacks under a name from the archive, and never reads more than
the manifest announces; links, devices, extended headers and compression do not exist for it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from lorahub.errors import ConflictError, NotFoundError, UsageError, VerificationError

MANIFEST = "manifest.json"
MAX_MANIFEST = 1 << 28
CHUNK = 1 << 20
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Member:
    """Where a file lies in a bundle."""

    offset: int
    size: int


class Writer:
    """Adds members to a bundle; their content is hashed on the way in."""

    def __init__(self, stream: BinaryIO) -> None:
        self._tar = tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT)  # noqa: SIM115 (close() ends it)

    def add_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Must come first. Raises VerificationError for one so large that no reader would take it."""
        data = json.dumps(manifest, allow_nan=False).encode("ascii")
        if len(data) > MAX_MANIFEST:
            raise VerificationError(f"the manifest has {len(data)} bytes, at most {MAX_MANIFEST} are read: export less")
        self._tar.addfile(_header(MANIFEST, len(data)), io.BytesIO(data))

    def add(self, name: str, path: Path, sha256: str, size: int) -> None:
        """Copy a file in; raises VerificationError unless it has this hash and size."""
        with path.open("rb") as stream:
            hashing = _Hashing(stream)
            if os.fstat(stream.fileno()).st_size == size:
                self._tar.addfile(_header(name, size), hashing)
        if hashing.digest.hexdigest() != sha256:
            raise VerificationError(f"{path} is not what was registered, sha256:{sha256[:12]}: run `lorahub verify`")

    def close(self) -> None:
        self._tar.close()


@contextmanager
def writing(path: Path, *, force: bool) -> Iterator[Writer]:
    """A bundle that appears under its name when the block ends well; raises ConflictError if one is there already."""
    if path.exists() and not force:
        raise ConflictError(f"{path} exists: give another name, or --force to replace it")
    if not path.parent.is_dir():
        raise NotFoundError(f"no folder {path.parent} to write {path.name} to")
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with partial.open("xb") as stream:
            writer = Writer(stream)
            yield writer
            writer.close()
            stream.flush()
            os.fsync(stream.fileno())
        if force:
            partial.replace(path)
        else:
            _publish(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class Reader:
    """A bundle that is open for reading; what it holds has been looked at, not yet read."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path = path
        self._stream = stream
        self.members = dict(self._scan())
        first = next(iter(self.members), None)
        if first != MANIFEST:
            raise VerificationError(f"{path} is no lorahub archive: it begins with {first!a}, not {MANIFEST}")
        self.manifest = self._manifest()

    def expect(self, sizes: Mapping[str, int]) -> None:
        """Raise VerificationError unless the bundle holds files of just these names and sizes besides the manifest."""
        there = {name: member.size for name, member in self.members.items() if name != MANIFEST}
        for name in sorted(there.keys() ^ sizes.keys()):
            what = "holds" if name in there else "lacks"
            raise VerificationError(
                f"{self.path} {what} {name[:100]!a}, against its manifest: nothing was taken from it"
            )
        for name, size in sizes.items():
            if there[name] != size:
                raise VerificationError(f"{self.path}: {name} has {there[name]} bytes, its manifest says {size}")

    def check_kind(self, format: str, schema: int, *, maker: str, takers: Mapping[str, str]) -> None:
        """Raises UsageError unless `lorahub MAKER` made this, in a schema we read; `takers` says who takes what else."""
        stated = str(self.manifest.get("format"))
        if stated != format:
            hint = f": use `lorahub {takers[stated]}`" if stated in takers else ""
            raise UsageError(f"{self.path} was not made by `lorahub {maker}`{hint}")
        if self.manifest.get("schema") != schema:
            raise UsageError(
                f"{self.path} has schema {self.manifest.get('schema')!a}, this lorahub reads {schema}: "
                "run `pip install --upgrade lorahub-toolkit`"
            )

    def open(self, name: str) -> io.BufferedReader:
        """The bytes of one member; one at a time."""
        member = self.members[name]
        self._stream.seek(member.offset)
        return io.BufferedReader(_Slice(self._stream, member.size), CHUNK)

    def verify(self, name: str, sha256: str) -> None:
        """Raise VerificationError unless the member has this hash."""
        digest = hashlib.file_digest(self.open(name), "sha256").hexdigest()
        if digest != sha256:
            raise VerificationError(
                f"{self.path}: {name} has sha256:{digest[:12]}, its manifest says {sha256[:12]}: nothing was taken from it"
            )

    def _scan(self) -> Iterator[tuple[str, Member]]:
        seen: set[str] = set()
        end = os.fstat(self._stream.fileno()).st_size
        offset = 0
        while True:
            self._stream.seek(offset)
            block = self._stream.read(_BLOCK)
            if block == bytes(_BLOCK):
                return
            name, size = self._header(block, offset)
            if name in seen or offset + _BLOCK + size > end:
                what = "twice" if name in seen else "cut short"
                raise VerificationError(f"{self.path} holds {name[:100]!a} {what}: nothing was taken from it")
            seen.add(name)
            yield name, Member(offset + _BLOCK, size)
            offset += _BLOCK + -(-size // _BLOCK) * _BLOCK

    def _header(self, block: bytes, offset: int) -> tuple[str, int]:
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            what = "a tar file" if offset == 0 else "whole"
            raise VerificationError(f"{self.path} is not {what} ({error}): get it again") from None
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.size < 0:
            raise VerificationError(f"{self.path} holds {info.name[:100]!a}, which is no plain file: nothing was taken")
        return info.name, info.size

    def _manifest(self) -> dict[str, Any]:
        if self.members[MANIFEST].size > MAX_MANIFEST:
            raise VerificationError(f"{self.path}: its manifest is larger than {MAX_MANIFEST} bytes")
        try:
            manifest = json.loads(self.open(MANIFEST).read(), parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise VerificationError(f"{self.path}: its manifest cannot be read ({type(error).__name__})") from None
        if not isinstance(manifest, dict):
            raise VerificationError(f"{self.path}: its manifest is no JSON object")
        return manifest


@contextmanager
def reading(path: Path) -> Iterator[Reader]:
    """The bundle at `path`; raises NotFoundError, and VerificationError for what is no bundle or not a whole one."""
    if not path.is_file():
        raise NotFoundError(f"no file {path}")
    with path.open("rb") as stream:
        yield Reader(path, stream)


class _Hashing(io.RawIOBase):
    """A stream that hashes what is read from it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.digest.update(data)
        return data


class _Slice(io.RawIOBase):
    """The next `size` bytes of a stream."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)


def _header(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)  # no time, owner or mode of this machine: the same content makes the same archive
    info.size = size
    return info


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _publish(partial: Path, path: Path) -> None:
    try:
        os.link(partial, path)  # unlike a rename it never replaces what another process put there meanwhile
    except FileExistsError:
        raise ConflictError(f"{path} exists: give another name, or --force to replace it") from None
    except OSError:  # a file system without hard links
        partial.replace(path)
