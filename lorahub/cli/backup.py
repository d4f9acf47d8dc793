"""lorahub backup"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lorahub.cli import catalogue, options, output


@click.command(short_help="Write the whole registry into one file.")
@click.argument("path", required=False, metavar="[FILE]", type=click.Path(path_type=Path))
@click.option("--store", is_flag=True, help="With the files in the store, not only the database.")
@click.option("--force", is_flag=True, help="Overwrite FILE if it exists.")
@catalogue.dry_run_option
@options.json_option
def command(path: Path | None, store: bool, force: bool, dry_run: bool, as_json: bool) -> None:
    """Write the whole registry into one file, by default in backups/ of its home; `restore --backup` puts it back.

    It is a consistent snapshot, whoever writes meanwhile. A registry on PostgreSQL is backed up with pg_dump.

    \b
    Examples:
      lorahub backup
      lorahub backup /mnt/disk/lorahub.tar --store
    """
    from lorahub.workspace import backups
    from lorahub.workspace.core import Workspace
    from lorahub.workspace.plain import to_plain

    with Workspace.open() as workspace, output.progress("backing up"):
        done = backups.backup(workspace, path, store=store, force=force, dry_run=dry_run)
    output.emit({"command": "backup", "dry_run": dry_run, **to_plain(done)}, _lines, as_json)


def _lines(result: dict[str, Any]) -> list[str]:
    done = "would have backed up" if result["dry_run"] else "backed up"
    size = output.human_size(result["size"])
    return [f"{done} {result['versions']} versions and {result['blobs']} files ({size}) to {result['path']}"]
