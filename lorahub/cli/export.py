"""lorahub export"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lorahub.cli import catalogue, options, output


@click.command(short_help="Write adapters into one archive, for another registry.")
@click.argument("references", nargs=-1, metavar="[REF...]", type=options.Reference())
@click.option("--all", "everything", is_flag=True, help="Export all adapters.")
@click.option(
    "-o", "--output", "path", required=True, type=click.Path(path_type=Path), metavar="FILE.tar", help="File to write."
)
@click.option("--force", is_flag=True, help="Overwrite the output if it exists.")
@catalogue.dry_run_option
@options.json_option
def command(
    references: tuple[str, ...], everything: bool, path: Path, force: bool, dry_run: bool, as_json: bool
) -> None:
    """Write versions, with their files and everything recorded of them, into one archive that `import` reads.

    A bare NAME means all its versions; - reads references from standard input. Files that lie in folders of yours
    are included by content. What the trash holds, and the history of aliases, only `backup` keeps.

    \b
    Examples:
      lorahub export papercut lcm-lora@prod -o for-anna.tar
      lorahub list -q --base sdxl --limit 0 | lorahub export - -o sdxl.tar
      lorahub export --all -o everything.tar
    """
    if bool(references) == everything:
        raise click.UsageError("expected either REF... or --all")
    from lorahub.workspace import archive
    from lorahub.workspace.core import Workspace
    from lorahub.workspace.plain import to_plain

    with Workspace.open() as workspace, output.progress("exporting"):
        done = archive.export(workspace, catalogue.read(*references), path, force=force, dry_run=dry_run)
    output.emit({"command": "export", "dry_run": dry_run, **to_plain(done)}, _lines, as_json)


def _lines(result: dict[str, Any]) -> list[str]:
    done = "would have exported" if result["dry_run"] else "exported"
    size = output.human_size(result["size"])
    return [f"{done} {len(result['versions'])} versions in {result['blobs']} files ({size}) to {result['path']}"]
