"""lorahub untag"""

from __future__ import annotations

import click

from lorahub.cli import catalogue, options


@click.command(short_help="Take tags off adapters.")
@click.argument("reference", metavar="REF", type=options.Reference())
@click.argument("tags", metavar="TAG...", nargs=-1, required=True)
@catalogue.also_option
@catalogue.dry_run_option
@options.json_option
def command(reference: str, tags: tuple[str, ...], also: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Take tags off a version of an adapter, and of others named with --also; a tag that is not there is no error.

    REF is NAME, NAME:VERSION, NAME@ALIAS or sha256:PREFIX; - reads references from standard input.

    \b
    Examples:
      lorahub untag papercut favourite
      lorahub list -q --tag old | lorahub untag - old
    """
    from lorahub.workspace import editing
    from lorahub.workspace.core import Workspace

    with Workspace.open() as workspace:
        records = editing.untag(workspace, catalogue.read(reference, *also), *tags, dry_run=dry_run)
    catalogue.changed("untag", records, "untagged", dry_run=dry_run, as_json=as_json)
