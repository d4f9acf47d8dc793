"""lorahub restore"""

from __future__ import annotations

from pathlib import Path

import click

from lorahub.cli import catalogue, options, output, table

_PARTIAL = 8


@click.command(short_help="Bring adapters back from the trash, or a registry from a backup.")
@click.argument("references", nargs=-1, metavar="[REF...]")
@click.option("--list", "show", is_flag=True, help="Print what is in the trash.")
@click.option("--backup", "file", type=click.Path(path_type=Path), metavar="FILE", help="A file that `backup` made.")
@catalogue.dry_run_option
@options.json_option
def command(references: tuple[str, ...], show: bool, file: Path | None, dry_run: bool, as_json: bool) -> None:
    """Bring versions back from the trash; a bare NAME means all its versions there. All come back or, on an error, none.

    With --backup, put the whole registry back as it was when `backup` wrote FILE; what it holds now is first
    kept in the folder backups/ of its home. Exit code 8: restored, but files are missing that the backup left out.

    \b
    Examples:
      lorahub restore --list
      lorahub restore papercut:1
      lorahub restore --backup lorahub-20261125.tar
    """
    if (bool(references), show, file is not None).count(True) != 1:
        raise click.UsageError("expected either REF..., --list or --backup FILE")
    if file is not None:
        _from_backup(file, dry_run, as_json)
        return
    from lorahub.workspace import removing
    from lorahub.workspace.core import Workspace

    with Workspace.open() as workspace:
        if show:
            trash = removing.trash(workspace)
            rows = [(each.reference, each.base, each.kind, table.size(each.size), each.deleted_at) for each in trash]
            result = {"command": "restore", "trash": [catalogue.version(each) for each in trash]}
            table.emit(result, ("VERSION", "BASE", "KIND", "SIZE", "REMOVED"), rows, as_json)
        else:
            records = removing.restore(workspace, catalogue.read(*references), dry_run=dry_run)
            catalogue.changed("restore", records, "restored", dry_run=dry_run, as_json=as_json)


def _from_backup(file: Path, dry_run: bool, as_json: bool) -> None:
    from lorahub.workspace import backups
    from lorahub.workspace.plain import to_plain

    restored = backups.restore_backup(file, dry_run=dry_run)
    output.emit({"command": "restore", "dry_run": dry_run, **to_plain(restored)}, _lines, as_json)
    if restored.without_file:
        click.get_current_context().exit(_PARTIAL)


def _lines(result: dict[str, object]) -> list[str]:
    done = "would have restored" if result["dry_run"] else "restored"
    lines = [f"{done} {result['versions']} versions and {result['blobs']} files from {result['path']}"]
    if result["kept"]:
        lines.append(f"the registry as it was is in {result['kept']}")
    if result["without_file"]:
        lines.append(f"{result['without_file']} versions have no file in the store: run `lorahub repair`")
    return lines
