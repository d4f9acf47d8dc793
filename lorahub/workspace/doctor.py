"""One look at everything that can be wrong, each problem with the command that mends it. Nothing is changed or read deeply."""

from __future__ import annotations

import platform
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lorahub.errors import LorahubError
from lorahub.workspace.core import Workspace
from lorahub.workspace.errors import translated
from lorahub.workspace.rebuilding import database_path
from lorahub.workspace.settings import settings
from registry import Info, default_home

PACKAGES = ("lorahub-toolkit", "sqlalchemy", "alembic", "safetensors", "torch", "diffusers", "peft", "huggingface_hub")
LITTLE_SPACE = 1 << 30


@dataclass(frozen=True)
class Problem:
    """What is wrong, and the command, or the advice, that mends it."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Diagnosis:
    """Versions of what is installed (None: it is not), where things lie, and what is wrong with them."""

    versions: Mapping[str, str | None]
    database: str
    store: str
    free_bytes: int | None
    info: Info | None
    roots: tuple[str, ...]
    problems: tuple[Problem, ...]


def diagnose() -> Diagnosis:
    """Look at the registry that the settings name; a registry that cannot be opened is a problem, not an error."""
    used = settings()
    home = (used.home or default_home()).expanduser().absolute()
    store = used.store or str(home / "store")
    near = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(near).free
    problems = [] if free >= LITTLE_SPACE else [Problem(f"{free // 10**6} MB are free on {near}", "lorahub gc")]
    info: Info | None = None
    roots: tuple[str, ...] = ()
    try:
        with Workspace.open() as workspace, translated():
            info, roots = workspace.registry.info(), workspace.registry.roots()
            problems += _examine(workspace, info, roots)
    except LorahubError as error:
        problems.append(Problem(str(error), "see `lorahub db rebuild --help`"))
    return Diagnosis(_versions(), database_path(), store, free, info, roots, tuple(problems))


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _examine(workspace: Workspace, info: Info, roots: tuple[str, ...]) -> Iterator[Problem]:
    registry = workspace.registry
    for note in info.notes:
        yield Problem(note, "see `lorahub db info`")
    if info.search == "like":
        yield Problem("this SQLite has no FTS5, so search is slow", "use a Python whose SQLite has FTS5")
    problems = registry.check()
    if any(" has no blob " not in line for line in problems):
        yield Problem(f"the database is damaged: {problems[0]}", "lorahub db rebuild")
    lost = sum(" has no blob " in line for line in problems)
    if lost:
        yield Problem(f"{lost} stored files are gone", "lorahub repair")
    for root in roots:
        if not Path(root).is_dir():
            yield Problem(f"the folder {root} is not there", f"connect the drive, then `lorahub scan {root}`")
    unhashed = len(registry.locations(hashed=False, missing=False))
    if unhashed:
        yield Problem(f"{unhashed} files are not hashed yet", "lorahub scan")
    unreachable = len(registry.unreachable())
    if unreachable:
        yield Problem(f"{unreachable} versions have no file", "lorahub missing; lorahub repair")
