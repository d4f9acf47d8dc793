"""lorahub gc"""

from __future__ import annotations

from typing import Any

import click

from lorahub.cli import options, output


@click.command(short_help="Delete stored files that no version uses.")
@click.option("--apply", is_flag=True, help="Delete them; without this they are only listed.")
@click.option("--dry-run", is_flag=True, help="Only list them; this is what happens without --apply.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0, max=36500),
    default=14.0,
    show_default=True,
    metavar="DAYS",
    help="Spare what was stored within these days.",
)
@options.json_option
def command(apply: bool, dry_run: bool, grace: float, as_json: bool) -> None:
    """List stored files that no version refers to, and with --apply delete them, and unfinished copies.

    Files of versions in the trash are kept until these are purged.

    \b
    Examples:
      lorahub gc
      lorahub gc --apply --grace 30
    """
    if apply and dry_run:
        raise click.UsageError("--apply and --dry-run exclude each other")
    from datetime import timedelta

    from lorahub.workspace.core import Workspace
    from lorahub.workspace.errors import translated

    with Workspace.open() as workspace, translated():
        blobs = workspace.registry.collect(grace=timedelta(days=grace), dry_run=not apply)
    unused = [{"sha256": blob.sha256, "size": blob.size} for blob in blobs]
    output.emit({"command": "gc", "applied": apply, "blobs": unused}, _as_lines, as_json)


def _as_lines(result: dict[str, Any]) -> list[str]:
    verb = "deleted" if result["applied"] else "would delete"
    lines = [f"{verb} {blob['sha256'][:12]}  {output.human_size(blob['size'])}" for blob in result["blobs"]]
    total = output.human_size(sum(blob["size"] for blob in result["blobs"]))
    return [*lines, f"{len(lines)} unused files, {total}" if lines else "every stored file is in use"]
