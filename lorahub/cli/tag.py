"""lorahub tag"""

from __future__ import annotations

import click

from lorahub.cli import catalogue, options


@click.command(short_help="Put tags on adapters.")
@click.argument("reference", metavar="REF", type=options.Reference())
@click.argument("tags", metavar="TAG...", nargs=-1, required=True)
@catalogue.also_option
@catalogue.dry_run_option
@options.json_option
def command(reference: str, tags: tuple[str, ...], also: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Put tags on a version of an adapter, and on others named with --also; on all of them or, on an error, on none.

    REF is NAME, NAME:VERSION, NAME@ALIAS or sha256:PREFIX; - reads references from standard input.

    \b
    Examples:
      lorahub tag papercut favourite "paper and scissors"
      lorahub list -q --base sd15 | lorahub tag - old
    """
    from lorahub.workspace import editing
    from lorahub.workspace.core import Workspace

    with Workspace.open() as workspace:
        records = editing.tag(workspace, catalogue.read(reference, *also), *tags, dry_run=dry_run)
    catalogue.changed("tag", records, "tagged", dry_run=dry_run, as_json=as_json)
