"""lorahub remove"""

from __future__ import annotations

import click

from lorahub.cli import catalogue, options


@click.command(short_help="Move adapters to the trash.")
@catalogue.references_argument
@catalogue.dry_run_option
@options.json_option
def command(references: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Move versions to the trash, from where `restore` brings them back; a bare NAME means all its versions.

    No file is deleted. All are removed or, on an error, none; a version that an alias points at is refused.

    \b
    Examples:
      lorahub remove papercut:1 --dry-run
      lorahub list -q --tag old | lorahub remove -
    """
    from lorahub.workspace import removing
    from lorahub.workspace.core import Workspace

    with Workspace.open() as workspace:
        records = removing.remove(workspace, references, dry_run=dry_run)
    catalogue.changed("remove", records, "removed", dry_run=dry_run, as_json=as_json)
