from __future__ import annotations

import hashlib
import io
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from registry import (
    BlobStore,
    ConflictError,
    DamagedError,
    Facts,
    InvalidError,
    LocalBlobs,
    NotFoundError,
    Registry,
    RemoteBlobs,
    UnavailableError,
    open_blobs,
)

DATA = b"weights" * 1000
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(params=["local", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlobStore]:
    if request.param == "local":
        yield open_blobs(tmp_path / "store", tmp_path / "cache")
        return
    url = f"memory://{uuid4().hex}"
    yield open_blobs(url, tmp_path / "cache")
    memory = fsspec.filesystem("memory")
    if memory.exists(url):
        memory.rm(url, recursive=True)


def write(store: BlobStore, sha256: str, data: bytes) -> None:
    """Change a blob's bytes behind the store's back."""
    if isinstance(store, LocalBlobs):
        place = store.root / "sha256" / sha256[:2] / sha256[2:]
        place.chmod(0o644)
        place.write_bytes(data)
    else:
        assert isinstance(store, RemoteBlobs)
        fsspec.filesystem("memory").pipe(f"{store.url}/sha256/{sha256[:2]}/{sha256[2:]}", data)


def unfinished(store: BlobStore) -> list[str]:
    if isinstance(store, LocalBlobs):
        return [str(path) for path in (store.root / "incoming").glob("*")]
    assert isinstance(store, RemoteBlobs)
    memory = fsspec.filesystem("memory")
    return list(memory.find(f"{store.url}/incoming"))


def test_put_and_get_back(blobs: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(DATA)
    assert blobs.stat(SHA) is None
    blob = blobs.put(source)
    assert (blob.sha256, blob.size) == (SHA, len(DATA))
    assert blobs.put(io.BytesIO(DATA), expect=SHA).sha256 == SHA
    assert blobs.path(SHA).read_bytes() == DATA
    blobs.verify(SHA)
    assert [(found.sha256, found.size) for found in blobs.blobs()] == [(SHA, len(DATA))]
    assert source.read_bytes() == DATA
    assert unfinished(blobs) == []
    stat = blobs.stat(SHA)
    assert stat is not None
    assert stat.modified is not None
    assert abs(stat.modified - datetime.now(UTC)) < timedelta(minutes=1)


def test_an_empty_file_is_a_blob(blobs: BlobStore) -> None:
    assert blobs.put(io.BytesIO(b"")).size == 0
    assert blobs.path(hashlib.sha256(b"").hexdigest()).read_bytes() == b""


def test_unexpected_bytes_are_not_stored(blobs: BlobStore) -> None:
    with pytest.raises(DamagedError, match="nothing was stored"):
        blobs.put(io.BytesIO(DATA), expect="0" * 64)
    assert list(blobs.blobs()) == unfinished(blobs) == []


def test_a_source_that_fails_leaves_nothing(blobs: BlobStore, tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell():
                raise OSError(5, "Input/output error")
            return super().read(3)

    with pytest.raises(UnavailableError, match="Input/output"):
        blobs.put(Broken(DATA))
    with pytest.raises(NotFoundError):
        blobs.put(tmp_path / "nothing")
    with pytest.raises(UnavailableError):
        blobs.put(tmp_path)
    assert list(blobs.blobs()) == unfinished(blobs) == []


@pytest.mark.parametrize("hostile", ["../../../../etc/passwd", "", "A" * 64, "0" * 63, "0" * 63 + "\n", "/" + "0" * 63])
def test_only_hashes_name_blobs(blobs: BlobStore, hostile: str) -> None:
    for verb in (blobs.path, blobs.stat, blobs.verify, blobs.delete, blobs.quarantine):
        with pytest.raises(InvalidError):
            verb(hostile)


def test_what_is_not_there_is_not_found(blobs: BlobStore) -> None:
    for verb in (blobs.path, blobs.verify, blobs.quarantine):
        with pytest.raises(NotFoundError):
            verb(SHA)
    blobs.delete(SHA)


def test_a_flipped_byte_is_found_and_quarantined(blobs: BlobStore) -> None:
    blobs.put(io.BytesIO(DATA))
    write(blobs, SHA, DATA[:-1] + b"X")
    with pytest.raises(DamagedError, match=SHA[:12]):
        blobs.verify(SHA)
    where = blobs.quarantine(SHA)
    with fsspec.open(where, "rb") as stream:
        assert stream.read() == DATA[:-1] + b"X"
    assert blobs.stat(SHA) is None
    assert list(blobs.blobs()) == []
    blobs.put(io.BytesIO(DATA))
    blobs.verify(SHA)


def test_a_truncated_blob_is_replaced_by_the_next_put(blobs: BlobStore) -> None:
    blobs.put(io.BytesIO(DATA))
    write(blobs, SHA, DATA[:10])
    blobs.put(io.BytesIO(DATA))
    blobs.verify(SHA)


def test_foreign_files_are_passed_over(blobs: BlobStore) -> None:
    blobs.put(io.BytesIO(DATA))
    if isinstance(blobs, LocalBlobs):
        (blobs.root / "sha256" / SHA[:2] / "README").write_text("hello")
    else:
        assert isinstance(blobs, RemoteBlobs)
        fsspec.filesystem("memory").pipe(f"{blobs.url}/sha256/{SHA[:2]}/README", b"hello")
    assert [blob.sha256 for blob in blobs.blobs()] == [SHA]


def test_a_remote_blob_that_changed_is_not_handed_out(tmp_path: Path) -> None:
    store = RemoteBlobs(f"memory://{uuid4().hex}", LocalBlobs(tmp_path / "cache"))
    store.put(io.BytesIO(DATA))
    write(store, SHA, b"x" * len(DATA))
    with pytest.raises(DamagedError):
        store.path(SHA)
    assert list(store.cache.blobs()) == []


def test_an_unknown_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidError):
        open_blobs("nonsense://bucket", tmp_path)
    assert isinstance(open_blobs(f"file://{tmp_path}", tmp_path), LocalBlobs)


def test_blobs_are_write_protected(tmp_path: Path) -> None:
    store = LocalBlobs(tmp_path / "store")
    store.put(io.BytesIO(DATA))
    assert store.path(SHA).stat().st_mode & 0o777 == 0o444


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    program = (
        "import io, sys; from pathlib import Path; from registry import LocalBlobs, UnavailableError\n"
        "try: LocalBlobs(Path(sys.argv[1])).put(io.BytesIO(b'x' * 3_000_000))\n"
        "except UnavailableError as error: sys.exit(print(error))\n"
        "sys.exit('stored')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000)),
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "File too large" in done.stdout
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def age(store: LocalBlobs, sha256: str, days: float) -> None:
    then = time.time() - days * 86400
    os.utime(store.path(sha256), (then, then))


def test_collect_takes_only_what_is_old_and_unused(registry: Registry, facts: Callable[..., Facts]) -> None:
    store = registry.blobs
    assert isinstance(store, LocalBlobs)
    used, trashed, old, young = (store.put(io.BytesIO(content)).sha256 for content in (b"u", b"t", b"o", b"y"))
    registry.add_version("used", facts("u"), stored=True)
    registry.add_version("trashed", facts("t"), stored=True)
    registry.add_version("elsewhere", facts("o"))  # in place: the store's copy is not this version's
    registry.remove("trashed")
    for sha256 in (used, trashed, old):
        age(store, sha256, 30)
    assert [blob.sha256 for blob in registry.collect(dry_run=True)] == [old]
    assert store.stat(old) is not None
    assert [blob.sha256 for blob in registry.collect()] == [old]
    assert {blob.sha256 for blob in store.blobs()} == {used, trashed, young}
    registry.purge()
    assert [blob.sha256 for blob in registry.collect()] == [trashed]
    assert [blob.sha256 for blob in registry.collect(grace=timedelta(0))] == [young]
    assert registry.check() == ()


def test_collect_sweeps_old_unfinished_copies_only(registry: Registry) -> None:
    store = registry.blobs
    assert isinstance(store, LocalBlobs)
    for name, days in (("old", 30), ("new", 0)):
        path = store.root / "incoming" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
        os.utime(path, (time.time() - days * 86400,) * 2)
    registry.collect()
    assert [path.name for path in (store.root / "incoming").iterdir()] == ["new"]


def test_putting_an_old_blob_again_makes_it_young(registry: Registry) -> None:
    store = registry.blobs
    assert isinstance(store, LocalBlobs)
    sha256 = store.put(io.BytesIO(DATA)).sha256
    age(store, sha256, 30)
    store.put(io.BytesIO(DATA))
    assert registry.collect() == ()


def test_no_row_without_its_blob(registry: Registry, facts: Callable[..., Facts]) -> None:
    with pytest.raises(ConflictError, match="in the store first"):
        registry.add_version("x", facts("a"), stored=True)
    assert registry.list() == ()
    registry.blobs.put(io.BytesIO(b"a"))
    registry.add_version("x", facts("a"), stored=True)
    assert registry.get("x").stored
    assert registry.check() == registry.without_blob() == ()
    registry.blobs.delete(registry.get("x").file_sha256)
    assert [record.reference for record in registry.without_blob()] == ["x:1"]
    assert "x:1 has no blob" in registry.check()[0]
