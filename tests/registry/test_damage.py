"""Databases that are broken, locked away, lost, or cannot be written: said at once, and never papered over."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from registry import DamagedError, Facts, InvalidError, NotFoundError, Registry, UnavailableError
from registry.sqlite_file import check_file, network_type, use_journal

Make = Callable[..., Facts]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def filled(sqlite_place: Any, facts: Make) -> Any:
    with sqlite_place.open() as registry:
        with registry.transaction():
            for number in range(60):
                registry.add_version(f"a{number}", facts(number), notes="some words " * 50)
        registry.blobs.put(BytesIO(b"0"))
    return sqlite_place


def damage(how: str, path: Path) -> None:
    data = path.read_bytes()
    half = len(data) // 2
    path.write_bytes(
        {
            "empty": b"",
            "zeroed": bytes(len(data)),
            "half zeroed": bytes(half) + data[half:],
            "truncated": data[:half],
            "short": data[:50],
            "other": b"<html>not found</html>" * 100,
        }[how]
    )


@pytest.mark.parametrize("how", ["empty", "zeroed", "half zeroed", "truncated", "short", "other"])
def test_a_damaged_file_is_detected_at_open(filled: Any, how: str) -> None:
    database = filled.home / "registry.db"
    damage(how, database)
    broken = database.read_bytes()
    with pytest.raises(DamagedError, match="lorahub db rebuild"):
        filled.open()
    assert database.read_bytes() == broken  # evidence is kept


def test_a_damaged_page_is_detected_by_check_or_use(filled: Any) -> None:
    database = filled.home / "registry.db"
    with closing(sqlite3.connect(database)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'version'").fetchone()
    with database.open("r+b") as stream:
        stream.seek((page - 1) * 4096)
        stream.write(b"\xff" * 4096)
    with filled.open() as registry:
        assert registry.check() != ()
        with pytest.raises(DamagedError):
            registry.list()


def test_a_dangling_row_is_found_by_check(filled: Any) -> None:
    with closing(sqlite3.connect(filled.home / "registry.db")) as connection, connection:
        connection.execute("DELETE FROM adapter WHERE name = 'a1'")  # plain sqlite3 leaves foreign keys off
    with filled.open() as registry:
        assert any("refers to no adapter" in problem for problem in registry.check())


def test_fresh_sets_the_damaged_database_aside(filled: Any) -> None:
    damage("zeroed", filled.home / "registry.db")
    with filled.open(fresh=True) as registry:
        assert registry.list() == ()
        assert len(list(registry.blobs.blobs())) == 1
    (kept,) = filled.home.glob("registry.db.damaged-*")
    assert not any(kept.read_bytes())
    filled.open().close()


def test_a_lost_database_is_not_mistaken_for_a_new_one(filled: Any) -> None:
    (filled.home / "registry.db").unlink()
    with pytest.raises(DamagedError, match="missing"):
        filled.open()
    assert not (filled.home / "registry.db").exists()
    filled.open(fresh=True).close()


def test_a_log_without_its_database_is_not_replayed_into_a_new_one(tmp_path: Path, facts: Make) -> None:
    with Registry.open(tmp_path / "a") as registry:
        registry.add_version("x", facts("a"))
        (tmp_path / "b").mkdir()
        shutil.copy(tmp_path / "a" / "registry.db-wal", tmp_path / "b")
    with pytest.raises(DamagedError, match="missing"):
        Registry.open(tmp_path / "b")
    with Registry.open(tmp_path / "b", fresh=True) as registry:
        assert registry.list() == ()
        assert registry.check() == ()
    assert len(list((tmp_path / "b").glob("registry.db.damaged-*-wal"))) == 1


def test_the_log_counts_while_there_is_one(tmp_path: Path, facts: Make) -> None:
    with Registry.open(tmp_path / "a") as registry:
        registry.add_version("x", facts("a"))
        shutil.copytree(tmp_path / "a", tmp_path / "b")  # as after a power cut: the log is not folded in
    assert (tmp_path / "b" / "registry.db-wal").stat().st_size > 0
    with Registry.open(tmp_path / "b") as registry:
        assert registry.names() == ("x",)
        assert registry.check() == ()


def test_a_full_disk_undoes_the_change(filled: Any) -> None:
    size = (filled.home / "registry.db").stat().st_size + 200_000
    program = (
        "import sys; from pathlib import Path; from registry import Facts, Registry, RegistryError\n"
        "with Registry.open(Path(sys.argv[1])) as registry:\n"
        "    for number in range(1000):\n"
        "        given = Facts(file_sha256=f'{number:064x}', size=1, format='kohya')\n"
        "        try: registry.add_version(f'full{number}', given, notes='x' * 20000)\n"
        "        except RegistryError as error: sys.exit(print(number, type(error).__name__, error))\n"
        "sys.exit('no limit met')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(filled.home)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    number, kind, _ = done.stdout.split(" ", 2)
    assert kind == "UnavailableError"
    with filled.open() as registry:
        assert registry.check() == ()
        assert len(registry.names("full")) == int(number) > 0


# The child warms up every import, becomes a user without rights, and then does what it may.
READ_ONLY = """
import os, sys
from pathlib import Path
from registry import Facts, NotFoundError, ReadOnlyError, Registry
given = Facts(file_sha256="0" * 64, size=1, format="kohya")
with Registry.open(Path(sys.argv[1])) as warm:
    warm.search("x"); warm.list(); warm.info(); warm.check()
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
with Registry.open(Path(sys.argv[2])) as registry:
    assert registry.read_only and registry.info().notes, "notes"
    assert registry.get("a1").number == 1 and registry.search("words") and len(registry.list()) == 60
    assert registry.check() == ()
    for change in (lambda: registry.add_version("y", given), lambda: registry.remove("a1"), registry.backup):
        try: change()
        except ReadOnlyError as error: print("refused")
try: Registry.open(Path(sys.argv[3]))
except NotFoundError as error: print("no registry")
try: Registry.open(Path(sys.argv[3]) / "new")
except ReadOnlyError as error: print("no home")
"""


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder other users can get to, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="lorahub-"))
    folder.chmod(0o755)
    yield folder
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("left_open", [False, True], ids=["closed", "in use by its owner"])
def test_a_read_only_home_can_be_read(filled: Any, tmp_path: Path, public_folder: Path, left_open: bool) -> None:
    home = public_folder / "home"
    shutil.copytree(filled.home, home)
    empty = public_folder / "empty"
    empty.mkdir()
    owner = Registry.open(home) if left_open else None
    if owner is not None:
        owner.edit("a1", notes="words in the log")
    for folder in (empty, *(path for path in home.rglob("*") if path.is_dir()), home):
        folder.chmod(0o555)
    for path in home.glob("registry.db*"):
        path.chmod(0o444)
    done = subprocess.run(
        [sys.executable, "-c", READ_ONLY, str(tmp_path / "warm"), str(home), str(empty)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    if owner is not None:
        owner.close()
    assert done.stderr == ""
    assert done.stdout.split("\n")[:-1] == ["refused"] * 3 + ["no registry", "no home"]


@pytest.mark.parametrize("url", ["sqlite:///x", "mysql://h/d", "nonsense", "postgresql+psycopg2://u:secret@h/d", ""])
def test_other_database_urls_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(InvalidError) as refused:
        Registry.open(tmp_path, database_url=url)
    assert "secret" not in str(refused.value)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as refused:
        Registry.open(tmp_path, database_url="postgresql+psycopg://me:secret@127.0.0.1:1/none?connect_timeout=2")
    assert "secret" not in str(refused.value)
    assert "127.0.0.1:1" in str(refused.value)


def test_fresh_is_not_for_servers(tmp_path: Path) -> None:
    with pytest.raises(InvalidError):
        Registry.open(tmp_path, database_url="postgresql://h/d", fresh=True)


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    from registry import ReadOnlyError

    with pytest.raises(ReadOnlyError):
        Registry.open(tmp_path / "file")


def test_an_unwritten_file_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError):
        check_file(tmp_path)
    with pytest.raises(UnavailableError):
        check_file(tmp_path / "nothing")


def test_network_file_systems_get_no_wal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/vda / ext4 rw 0 0\nserver:/x /mnt/my\\040share nfs4 rw 0 0\n//h/s /mnt/win cifs rw 0 0\n"
        "tmpfs /mnt/win/local tmpfs rw 0 0\n"
    )
    assert network_type(Path("/mnt/my share/home"), mounts) == "nfs4"
    assert network_type(Path("/mnt/win"), mounts) == "cifs"
    assert network_type(Path("/mnt/win/local/x"), mounts) is None
    assert network_type(Path("/mnt/windows"), mounts) is None
    assert network_type(Path("/home"), tmp_path / "no such file") is None
    monkeypatch.setattr("registry.sqlite_file.network_type", lambda path: "nfs4")
    assert use_journal(tmp_path / "new.db") == "delete"
    with Registry.open(tmp_path / "home") as registry:
        info = registry.info()
    assert info.journal == "delete"
    assert "nfs4" in " ".join(info.notes)


def test_home_is_the_environment_or_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from registry import default_home

    monkeypatch.setenv("LORAHUB_HOME", str(tmp_path / "chosen"))
    assert default_home() == tmp_path / "chosen"
    with Registry.open() as registry:
        assert registry.home == tmp_path / "chosen"
        with pytest.raises(NotFoundError):
            registry.get("x")
    monkeypatch.delenv("LORAHUB_HOME")
    assert default_home().name == "lorahub"
