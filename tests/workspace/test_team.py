"""A team's registry: the database on a real PostgreSQL server, the files on a real S3 server on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from lorahub.errors import UsageError, VerificationError
from lorahub.workspace.adding import add
from lorahub.workspace.archive import export, import_
from lorahub.workspace.backups import backup
from lorahub.workspace.core import Workspace
from registry import NotFoundError, RemoteBlobs

SCRIPT = Path(sys.executable).with_name("lorahub")
BUCKET = "team"


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """An S3 server in a process of its own; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            assert server.poll() is None, "the S3 server ended; is moto[s3] with flask installed?"
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a store nobody used yet; boto finds the server and the credentials in the environment."""
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "anna",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    files = s3fs.S3FileSystem()
    if not files.exists(BUCKET):
        files.mkdir(BUCKET)
    return f"s3://{BUCKET}/{uuid4().hex}"


@pytest.fixture
def team(postgres_url: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """LORAHUB_DATABASE_URL and LORAHUB_STORE of an empty registry that all members share."""
    from sqlalchemy import create_engine, make_url, text

    name = f"lorahub_team_{uuid4().hex}"
    engine = create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    url = make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    monkeypatch.setenv("LORAHUB_DATABASE_URL", url)
    monkeypatch.setenv("LORAHUB_STORE", bucket)
    yield
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


def member(home: Path, *arguments: str | Path, code: int = 0) -> str:
    """What a member of the team gets printed, who has a home of their own."""
    env = {**os.environ, "LORAHUB_HOME": str(home)}
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == code, done.stderr
    return done.stdout


def test_two_members_share_database_and_files(team: None, tmp_path: Path, make_adapter: Callable[..., Path]) -> None:
    anna, ben = tmp_path / "anna", tmp_path / "ben"
    style = make_adapter(tmp_path / "style.safetensors", seed=1)
    content = style.read_bytes()
    member(anna, "add", style, "--tag", "warm")
    style.unlink()
    assert member(ben, "list").split("\t")[0] == "style:1"
    assert member(ben, "search", "-q", "warm").splitlines() == ["style:1"]
    assert member(ben, "edit", "style", "--base", "sdxl", "--note", "paper cut", "--steps", "4") == "edited style:1\n"
    assert member(ben, "alias", "style:1", "prod")
    shown = json.loads(member(anna, "show", "style@prod", "--json"))
    assert (shown["record"]["base"], shown["record"]["notes"]) == ("sdxl", "paper cut")
    assert shown["record"]["run"]["steps"] == 4
    assert member(anna, "search", "-q", '"paper cut"').splitlines() == ["style:1"]
    assert member(anna, "remove", "style", code=6) == ""
    member(ben, "export", "style", "-o", tmp_path / "style.tar")
    with Workspace.open(ben) as workspace:
        path = workspace.path(workspace.get("style"))
        assert path.read_bytes() == content
        assert path.is_relative_to(ben / "cache")
    for home in (anna, ben):
        assert not (home / "registry.db").exists()
        assert not (home / "store").exists()
    with pytest.raises(UsageError, match="pg_dump"), Workspace.open(anna) as workspace:
        backup(workspace)
    # What the team has moves to one person's SQLite.
    env = {"LORAHUB_DATABASE_URL": "", "LORAHUB_STORE": "", "LORAHUB_HOME": str(tmp_path / "own")}
    done = subprocess.run([SCRIPT, "import", tmp_path / "style.tar"], env={**os.environ, **env}, capture_output=True)
    assert done.stdout == b"added style:1\n", done.stderr


def test_names_complete_from_the_server(team: None, tmp_path: Path, make_adapter: Callable[..., Path]) -> None:
    member(tmp_path, "add", make_adapter(tmp_path / "style.safetensors"))
    member(tmp_path, "alias", "style:1", "prod")
    for word, proposals in (
        ("st", ["style"]),
        ("STYLE", ["style"]),
        ("style:", ["style:1"]),
        ("style@", ["style@prod"]),
    ):
        env = {
            **os.environ,
            "_LORAHUB_COMPLETE": "zsh_complete",
            "COMP_WORDS": f"lorahub show {word}",
            "COMP_CWORD": "2",
        }
        done = subprocess.run([SCRIPT], capture_output=True, text=True, env=env, timeout=60)
        assert done.stderr == ""
        assert [line for line in done.stdout.splitlines() if line in proposals] == proposals


def test_a_database_without_tables_or_no_server_completes_to_nothing(
    team: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorahub.workspace.completing import complete

    assert complete("s") == []
    from sqlalchemy import create_engine, inspect

    engine = create_engine(os.environ["LORAHUB_DATABASE_URL"])
    assert inspect(engine).get_table_names() == []
    engine.dispose()
    monkeypatch.setenv("LORAHUB_DATABASE_URL", "postgresql+psycopg://nobody@127.0.0.1:1/none")
    assert complete("s") == []


def test_files_on_s3_are_verified_and_quarantined(
    bucket: str, tmp_path: Path, make_adapter: Callable[..., Path]
) -> None:
    import s3fs

    files = s3fs.S3FileSystem()
    with Workspace.open(tmp_path / "home", store=bucket) as workspace:
        add(workspace, [make_adapter(tmp_path / "style.safetensors")])
        record = workspace.get("style")
        blobs = workspace.registry.blobs
        assert isinstance(blobs, RemoteBlobs)
        blobs.verify(record.file_sha256)
        assert [blob.sha256 for blob in blobs.blobs()] == [record.file_sha256]
        place = f"{bucket}/sha256/{record.file_sha256[:2]}/{record.file_sha256[2:]}"
        content = bytearray(files.cat_file(place))
        content[-1] ^= 1
        files.pipe_file(place, bytes(content))
        with pytest.raises(VerificationError, match="nothing was stored"):
            export(workspace, "style", tmp_path / "bad.tar")
        assert not (tmp_path / "bad.tar").exists()
        kept = blobs.quarantine(record.file_sha256)
        assert files.cat_file(kept) == bytes(content)
        assert [record.reference for record in workspace.registry.without_blob()] == ["style:1"]
        add(workspace, [tmp_path / "style.safetensors"])
        assert workspace.registry.check() == ()
        assert not files.find(f"{bucket}/incoming")


def test_an_archive_goes_into_a_bucket(bucket: str, tmp_path: Path, make_adapter: Callable[..., Path]) -> None:
    with Workspace.open(tmp_path / "one") as workspace:
        add(workspace, [make_adapter(tmp_path / "style.safetensors")])
        export(workspace, [], tmp_path / "all.tar")
    with Workspace.open(tmp_path / "two", store=bucket) as workspace:
        assert import_(workspace, tmp_path / "all.tar").added == ("style:1",)
        workspace.registry.blobs.verify(workspace.get("style").file_sha256)
        assert workspace.path(workspace.get("style")).read_bytes() == (tmp_path / "style.safetensors").read_bytes()


def test_a_server_that_is_not_there_is_one_line(
    tmp_path: Path, make_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "anna",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_MAX_ATTEMPTS": "1",
        "LORAHUB_STORE": "s3://team/x",
    }.items():
        monkeypatch.setenv(name, value)
    env = {**os.environ, "LORAHUB_HOME": str(tmp_path / "home")}
    path = make_adapter(tmp_path / "style.safetensors")
    done = subprocess.run([SCRIPT, "add", path], capture_output=True, text=True, env=env, timeout=120)
    assert (done.returncode, done.stdout) == (5, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("Error: the store s3://team/x cannot be used")
    assert "secret" not in line


def test_a_database_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    url = "postgresql+psycopg://anna:secret@127.0.0.1:1/team"
    env = {**os.environ, "LORAHUB_HOME": str(tmp_path / "home"), "LORAHUB_DATABASE_URL": url}
    done = subprocess.run([SCRIPT, "list"], capture_output=True, text=True, env=env, timeout=120)
    assert (done.returncode, done.stdout) == (5, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("Error: postgresql+psycopg://anna:***@127.0.0.1:1/team cannot be reached")
    assert "secret" not in line


def test_a_misspelt_bucket_is_not_made(bucket: str, tmp_path: Path, make_adapter: Callable[..., Path]) -> None:
    import s3fs

    path = make_adapter(tmp_path / "style.safetensors")
    with (
        Workspace.open(tmp_path / "home", store="s3://teem/x") as workspace,
        pytest.raises(NotFoundError, match="s3://teem/x is in no bucket"),
    ):
        workspace.registry.blobs.put(path)
    assert s3fs.S3FileSystem(skip_instance_cache=True).ls("") == [BUCKET]
    env = {**os.environ, "LORAHUB_HOME": str(tmp_path / "home"), "LORAHUB_STORE": "s3://teem/x"}
    done = subprocess.run([SCRIPT, "add", path], capture_output=True, text=True, env=env, timeout=120)
    assert (done.returncode, done.stdout) == (4, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("Error: the store s3://teem/x is in no bucket")
