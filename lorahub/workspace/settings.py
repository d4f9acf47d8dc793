"""Settings and where each comes from: argument, environment, project file, user file, default; the first that says wins.

Project file: `lorahub.toml` in the current folder or above. User file: `config.toml` in the platform's configuration
folder. Both hold the keys of `KEYS`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from lorahub.errors import ConflictError, UsageError

KEYS = {
    "home": "LORAHUB_HOME",
    "database_url": "LORAHUB_DATABASE_URL",
    "store": "LORAHUB_STORE",
}
"""setting -> environment variable"""


@dataclass(frozen=True)
class Settings:
    """The values in force. None means the default: the platform's data folder, SQLite in it, a store beside it."""

    home: Path | None
    database_url: str | None
    store: str | None
    origins: Mapping[str, str]
    """setting -> where its value came from, in words"""


def settings(**given: Path | str | None) -> Settings:
    """The settings in force; `given` are values from arguments or options. Raises UsageError for a bad file."""
    values: dict[str, str | None] = {}
    origins: dict[str, str] = {}
    files = [(name, _read(path)) for name, path in config_files()]
    for key, variable in KEYS.items():
        sources = [("argument", given.get(key)), (f"environment {variable}", os.environ.get(variable) or None)]
        sources += [(name, content.get(key)) for name, content in files]
        origin, value = next(((name, value) for name, value in sources if value is not None), ("default", None))
        values[key], origins[key] = (None if value is None else str(value)), origin
    home = values["home"]
    return Settings(Path(home).expanduser() if home else None, values["database_url"], values["store"], origins)


def config_files() -> list[tuple[str, Path]]:
    """(name in words, path) of the configuration files that exist, the nearest first."""
    found = []
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "lorahub.toml").is_file():
            found.append((f"project file {folder / 'lorahub.toml'}", folder / "lorahub.toml"))
            break
    if user_file().is_file():
        found.append((f"user file {user_file()}", user_file()))
    return found


def user_file() -> Path:
    """Where `lorahub config set` writes."""
    from platformdirs import user_config_path

    return user_config_path("lorahub", appauthor=False) / "config.toml"


def change(key: str, value: str | None, *, dry_run: bool = False) -> Path:
    """Write a setting into the user file, or with None take it out; all else in the file stays as it is.

    Raises UsageError for an unknown setting, ConflictError for a file in which the line cannot be told from others.
    """
    if key not in KEYS:
        raise UsageError(f"unknown setting {key!r}; expected {', '.join(KEYS)}")
    path = user_file()
    wanted: dict[str, str | None] = {**(_read(path) if path.is_file() else {}), key: value}
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = [line for line in before.splitlines() if not re.match(rf"\s*{key}\s*=", line)]
    if value is not None:
        lines.append(f"{key} = {_quoted(value)}")
    after = "".join(f"{line}\n" for line in lines)
    try:
        understood = tomllib.loads(after)
    except tomllib.TOMLDecodeError:
        understood = {}
    if understood != {name: said for name, said in wanted.items() if said is not None}:
        raise ConflictError(f"cannot change {key!r} in {path} without losing something: edit the file")
    if not dry_run:
        _write(path, after)
    return path


def _quoted(value: str) -> str:
    """A basic string of TOML."""
    escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in value)
    return f'"{escaped}"'


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with partial.open("x", encoding="utf-8") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, str]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    unknown = content.keys() - KEYS.keys()
    if unknown:
        raise UsageError(f"{path}: unknown setting {sorted(unknown)[0]!r}; expected {', '.join(KEYS)}")
    return {key: str(value) for key, value in content.items()}
