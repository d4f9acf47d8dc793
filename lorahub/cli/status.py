"""lorahub status"""

from __future__ import annotations

from typing import Any

import click

from lorahub.cli import options, table

_HEADER = ("ADAPTER", "STATUS", "REPOSITORY", "HERE", "THERE", "REASON")


@click.command(short_help="Compare the registry with the Hugging Face Hub.")
@click.argument("names", nargs=-1, metavar="[NAME]...", type=options.Reference())
@options.json_option
def command(names: tuple[str, ...], as_json: bool) -> None:
    """Say of adapters that were pushed or pulled (all, if none is named) which side changed since; nothing is downloaded.

    same, ahead (changed here), behind (changed there), diverged (both), removed (in the trash here), gone (no longer
    there), refused (the Hub does not let this token look; then it exits with 8).

    \b
    Examples:
      lorahub status
      lorahub status papercut --json
    """
    from lorahub.sync.state import status
    from lorahub.workspace.core import Workspace
    from lorahub.workspace.plain import to_plain

    with Workspace.open() as workspace:
        found = status(workspace, names)
    rows = [
        (each.reference or each.name, each.status, f"{each.repo}@{each.branch}", each.here, each.there, each.reason)
        for each in found
    ]
    result: dict[str, Any] = {"command": "status", "adapters": to_plain(found)}
    table.emit(result, _HEADER, rows, as_json)
    if any(each.status == "refused" for each in found):
        click.get_current_context().exit(8)
