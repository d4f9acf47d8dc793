"""lorahub duplicates"""

from __future__ import annotations

from typing import Any

import click

from lorahub.cli import options, output

_BY = {
    "file": "the same file",
    "data": "the same weights in the same layout, other metadata",
    "fingerprint": "the same vector, spelled otherwise",
    "place": "one version that lies at several places",
}


@click.command(short_help="Find adapters that are there more than once.")
@click.option("--by", type=click.Choice(list(_BY)), help="Only this kind. [all, each group once]")
@options.json_option
def command(by: str | None, as_json: bool) -> None:
    """Find adapters that are there more than once: as the same file, the same weights, or the same vector.

    Weights in another spelling are known by their fingerprints, which `lorahub add` and `lorahub scan --deep` read.

    \b
    Examples:
      lorahub duplicates
      lorahub duplicates --by fingerprint --json
    """
    from lorahub.workspace.core import Workspace
    from lorahub.workspace.duplicates import duplicates, unread
    from lorahub.workspace.plain import to_plain

    with Workspace.open() as workspace:
        groups = duplicates(workspace, by)
        lacking = unread(workspace) if by in (None, "fingerprint") else 0
    output.emit({"command": "duplicates", "groups": to_plain(groups)}, _as_lines, as_json)
    if lacking:
        click.echo(f"{lacking} adapters have no fingerprint and may be copies too: `lorahub scan --deep`", err=True)


def _as_lines(result: dict[str, Any]) -> list[str]:
    lines = []
    for group in result["groups"]:
        lines.append(f"{_BY[group['by']]}:")
        lines += [f"  {each['reference']}  {each['place'] or ''}".rstrip() for each in group["copies"]]
    return lines or ["no duplicates"]
