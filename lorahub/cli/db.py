"""lorahub db"""

from __future__ import annotations

from typing import Any

import click

from lorahub.cli import options, output


@click.group(name="db", short_help="Look after the database of the registry.")
def command() -> None:
    """Look after the database of the registry.

    \b
    Examples:
      lorahub db info
      lorahub db check
      lorahub db rebuild
    """


@command.command(name="path")
@options.json_option
def path(as_json: bool) -> None:
    """Print where the database is; nothing is opened or made.

    \b
    Example:
      sqlite3 "$(lorahub db path)" .schema
    """
    from lorahub.workspace.rebuilding import database_path

    output.emit({"command": "db path", "path": database_path()}, lambda result: [result["path"]], as_json)


@command.command(name="info")
@options.json_option
def info(as_json: bool) -> None:
    """Print what the database is and how much is in it.

    \b
    Example:
      lorahub db info --json
    """
    from lorahub.workspace.core import Workspace
    from lorahub.workspace.errors import translated
    from lorahub.workspace.plain import to_plain

    with Workspace.open() as workspace, translated():
        found = to_plain(workspace.registry.info())
    result = {"command": "db info", "revision": found.pop("schema"), **found}
    output.emit(result, _info_lines, as_json)


@command.command(name="upgrade")
@options.json_option
def upgrade(as_json: bool) -> None:
    """Bring the schema up to date, after a backup; every other command does the same when it has to.

    \b
    Example:
      lorahub db upgrade
    """
    from lorahub.workspace.core import Workspace
    from lorahub.workspace.errors import translated

    with Workspace.open() as workspace, translated():
        before = workspace.registry.upgraded_from
        revision = workspace.registry.info().schema
    backup = str(before) if before else None
    result = {"command": "db upgrade", "revision": revision, "backup": backup}
    output.emit(result, lambda found: [f"revision {revision}" + (f", backup in {backup}" if backup else "")], as_json)


@command.command(name="check")
@options.json_option
def check(as_json: bool) -> None:
    """Check that the database is whole and that stored files are there; exits with 7 if not.

    \b
    Example:
      lorahub db check
    """
    from lorahub.workspace.core import Workspace
    from lorahub.workspace.errors import translated

    with Workspace.open() as workspace, translated():
        problems = workspace.registry.check()
    result = {"command": "db check", "problems": list(problems)}
    output.emit(result, lambda found: found["problems"] or ["the database is whole"], as_json)
    if problems:
        click.get_current_context().exit(7)


@command.command(name="rebuild")
@click.option("--force", is_flag=True, help="Even if the database is whole.")
@options.json_option
def rebuild(force: bool, as_json: bool) -> None:
    """Make a lost or damaged database again from its journal, or from the stored files where that is lost too.

    The old database is renamed, not deleted. Exits with 8 when not all could be brought back.

    \b
    Example:
      lorahub db rebuild
    """
    from lorahub.workspace import rebuilding
    from lorahub.workspace.plain import to_plain

    done = rebuilding.rebuild(force=force)
    output.emit({"command": "db rebuild", **to_plain(done)}, _rebuild_lines, as_json)
    if not done.complete or done.without_file or done.unreadable:
        click.get_current_context().exit(8)


@command.command(name="backup")
@options.json_option
def backup(as_json: bool) -> None:
    """Copy the database, consistently, into the folder `backups` beside it.

    \b
    Example:
      lorahub db backup
    """
    from lorahub.workspace.core import Workspace
    from lorahub.workspace.errors import translated

    with Workspace.open() as workspace, translated():
        copy = str(workspace.registry.backup())
    output.emit({"command": "db backup", "path": copy}, lambda result: [result["path"]], as_json)


def _info_lines(result: dict[str, Any]) -> list[str]:
    names = ("database", "revision", "journal", "search", "adapters", "versions", "trashed", "read_only")
    lines = [f"{name.replace('_', ' ')}: {result[name]}" for name in names if result[name] is not None]
    return lines + [f"note: {note}" for note in result["notes"]]


def _rebuild_lines(result: dict[str, Any]) -> list[str]:
    source = "its journal" if result["complete"] else "the stored files: no journal, so names, tags and notes are lost"
    lines = [f"rebuilt {result['database']} from {source}: {result['adapters']} adapters"]
    if result["set_aside"]:
        lines.append(f"the old database is {result['set_aside']}")
    lines += [f"its file is not in the store: {reference}" for reference in result["without_file"]]
    return lines + [f"not recovered: {blob[:12]}: {reason}" for blob, reason in result["unreadable"]]
