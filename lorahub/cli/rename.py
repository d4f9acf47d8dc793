"""lorahub rename"""

from __future__ import annotations

import click

from lorahub.cli import catalogue, options


@click.command(short_help="Give an adapter another name.")
@click.argument("old", type=options.Reference())
@click.argument("new")
@catalogue.dry_run_option
@options.json_option
def command(old: str, new: str, dry_run: bool, as_json: bool) -> None:
    """Give an adapter another name, with all its versions, aliases and lineage.

    \b
    Example:
      lorahub rename papercut_final_v2 papercut
    """
    from lorahub.workspace import editing
    from lorahub.workspace.core import Workspace

    with Workspace.open() as workspace:
        record = editing.rename(workspace, old, new, dry_run=dry_run)
    catalogue.changed("rename", [record], f"renamed {old} to", dry_run=dry_run, as_json=as_json, old=old)
