"""lorahub alias"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lorahub.cli import catalogue, options, output, table

if TYPE_CHECKING:
    from lorahub.workspace.core import Workspace


@click.command(short_help="Name a version, such as style@prod.")
@click.argument("reference", metavar="REF", type=options.Reference())
@click.argument("name", metavar="[ALIAS]", required=False)
@click.option("--delete", is_flag=True, help="Remove the alias; its history stays.")
@click.option(
    "--history", is_flag=True, help="Print where the alias, or each alias of REF, pointed, when, and who did it."
)
@catalogue.dry_run_option
@options.json_option
def command(reference: str, name: str | None, delete: bool, history: bool, dry_run: bool, as_json: bool) -> None:
    """Point an alias at a version: NAME@ALIAS then names it anywhere, until the alias is pointed elsewhere.

    \b
    Examples:
      lorahub alias papercut:3 prod
      lorahub alias papercut prod --history
      lorahub alias papercut prod --delete
    """
    if delete and history:
        raise click.UsageError("--delete and --history exclude each other")
    if name is None and not history:
        raise click.UsageError("Missing argument 'ALIAS'.")
    from lorahub.workspace import editing
    from lorahub.workspace.core import Workspace

    with Workspace.open() as workspace:
        if history:
            _history(workspace, reference, name, as_json)
        elif delete:
            editing.unalias(workspace, reference, str(name), dry_run=dry_run)
            done = "would have removed" if dry_run else "removed"
            result = {"command": "alias", "dry_run": dry_run, "adapter": reference, "deleted": name}
            output.emit(result, lambda found: [f"{done} {found['adapter']}@{found['deleted']}"], as_json)
        else:
            record = editing.alias(workspace, reference, str(name), dry_run=dry_run)
            catalogue.changed("alias", [record], f"pointed @{name} at", dry_run=dry_run, as_json=as_json, alias=name)


def _history(workspace: Workspace, adapter: str, name: str | None, as_json: bool) -> None:
    from lorahub.workspace import editing
    from lorahub.workspace.plain import to_plain

    moves: list[dict[str, Any]] = [to_plain(move) for move in editing.alias_history(workspace, adapter, name)]
    header = ("ALIAS", "FROM", "TO", "BY", "AT")
    rows = [[move[key] for key in ("alias", "previous", "number", "by", "at")] for move in moves]
    result = {"command": "alias", "adapter": adapter, "history": moves}
    table.emit(result, header, rows, as_json)
