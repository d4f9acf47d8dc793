"""lorahub missing"""

from __future__ import annotations

from typing import Any

import click

from lorahub.cli import options, output


@click.command(short_help="List adapters whose file is not to be found.")
@click.option("-q", "--quiet", is_flag=True, help="Print references only, one a line.")
@options.json_option
def command(quiet: bool, as_json: bool) -> None:
    """List versions whose file is neither in the store nor where it was last seen.

    `lorahub repair` looks for files that moved; `lorahub remove` takes versions out of the catalogue.

    \b
    Example:
      lorahub missing
    """
    from pathlib import Path

    from lorahub.workspace.core import Workspace
    from lorahub.workspace.errors import translated

    with Workspace.open() as workspace, translated():
        lost: list[dict[str, Any]] = []
        for record in workspace.registry.unreachable():
            places = workspace.registry.locations(reference=record.reference)
            seen = [str(Path(place.root) / place.relpath) for place in places]
            since = min((place.missing_since for place in places if place.missing_since), default=None)
            lost.append(
                {"reference": record.reference, "last_seen": seen, "since": since.isoformat() if since else None}
            )
    output.emit({"command": "missing", "versions": lost}, lambda result: _as_lines(result, quiet), as_json)


def _as_lines(result: dict[str, Any], quiet: bool) -> list[str]:
    if quiet:
        return [each["reference"] for each in result["versions"]]
    lines = [f"{each['reference']}  last seen at {', '.join(each['last_seen']) or '-'}" for each in result["versions"]]
    return lines or ["nothing is missing"]
