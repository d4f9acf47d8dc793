"""lorahub config: what is in force, from where, and a user file that keeps everything else it holds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lorahub.errors import ConflictError, UsageError
from lorahub.workspace.settings import change, settings
from tests.cli.conftest import Run


@pytest.fixture
def user_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("LORAHUB_HOME", "LORAHUB_DATABASE_URL", "LORAHUB_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "config" / "lorahub" / "config.toml"


def test_set_get_unset(user_file: Path, run: Run) -> None:
    assert run("config", "get", "home").stdout == "\n"
    assert run("config", "set", "home", "/data/my loras").stdout == f"changed home in {user_file}\n"
    assert user_file.read_text() == 'home = "/data/my loras"\n'
    assert run("config", "get", "home").stdout == "/data/my loras\n"
    assert run("config", "unset", "home").exit_code == 0
    assert user_file.read_text() == ""
    assert run("config", "unset", "home").exit_code == 0
    assert [path.name for path in user_file.parent.iterdir()] == ["config.toml"]


def test_the_nearest_wins_and_its_origin_is_shown(user_file: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("config", "set", "home", "/user")
    run("config", "set", "store", "/store")
    Path("lorahub.toml").write_text('home = "/project"\n')
    lines = run("config", "show", "--origin").stdout.splitlines()
    assert lines == [
        f"home = /project   [project file {Path.cwd() / 'lorahub.toml'}]",
        "database_url = (default)   [default]",
        f"store = /store   [user file {user_file}]",
    ]
    monkeypatch.setenv("LORAHUB_HOME", "/environment")
    shown = json.loads(run("config", "show", "--json").stdout)
    assert shown["settings"]["home"] == {"value": "/environment", "origin": "environment LORAHUB_HOME"}
    result = run("config", "set", "home", "/other")
    assert result.exit_code == 0
    assert "environment LORAHUB_HOME" in result.stderr
    assert settings(home="/argument").origins["home"] == "argument"


def test_all_else_in_the_file_stays(user_file: Path) -> None:
    user_file.parent.mkdir(parents=True)
    user_file.write_text('# mine\nhome="/old"  # why\n\nstore = "/s"\n')
    change("home", "/new")
    assert user_file.read_text() == '# mine\n\nstore = "/s"\nhome = "/new"\n'


@pytest.mark.parametrize("value", ['a"b\\c', "line\nbreak\ttab", "ünïcödé 🎨", "\x7f\x1b[31m", "'''", "#"])
def test_any_value_comes_back(user_file: Path, value: str) -> None:
    change("home", "/before")
    change("store", value)
    assert settings().store == value
    assert settings().home == Path("/before")


def test_a_file_that_cannot_be_changed_safely_is_left(user_file: Path) -> None:
    user_file.parent.mkdir(parents=True)
    content = 'store = """\nhome = 1\n"""\n'
    user_file.write_text(content)
    with pytest.raises(ConflictError, match="edit the file"):
        change("home", "/new")
    assert user_file.read_text() == content


@pytest.mark.parametrize("content", ["home = ", "nosuch = 1\n", b"\xff"])
def test_a_bad_file_is_refused(user_file: Path, run: Run, content: str | bytes) -> None:
    user_file.parent.mkdir(parents=True)
    user_file.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = run("config", "show")
    assert (result.exit_code, result.stdout) == (2, "")
    assert str(user_file) in result.stderr
    with pytest.raises(UsageError):
        change("home", "/new")


def test_a_dry_run_writes_nothing(user_file: Path, run: Run) -> None:
    assert run("config", "set", "home", "/x", "--dry-run").stdout == f"would have changed home in {user_file}\n"
    assert not user_file.exists()


def test_a_password_is_not_printed(user_file: Path, run: Run) -> None:
    run("config", "set", "database_url", "postgresql+psycopg://anna:secret@db/lorahub")
    assert run("config", "get", "database_url").stdout == "postgresql+psycopg://anna:***@db/lorahub\n"
    assert "secret" not in run("config", "show", "--json").stdout
    assert settings().database_url == "postgresql+psycopg://anna:secret@db/lorahub"


def test_unknown_settings_are_refused(user_file: Path, run: Run) -> None:
    assert run("config", "set", "nosuch", "1").exit_code == 2
    with pytest.raises(UsageError, match="nosuch"):
        change("nosuch", "1")
    assert os.path.lexists(user_file) is False
