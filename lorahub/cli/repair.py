"""lorahub repair"""

from __future__ import annotations

from typing import Any

import click

from lorahub.cli import options, output


@click.command(short_help="Mend what is broken: first the plan, then --apply.")
@click.argument("folders", metavar="[FOLDER]...", nargs=-1, type=click.Path())
@click.option("--apply", is_flag=True, help="Do it; without this only the plan is printed.")
@click.option("--dry-run", is_flag=True, help="Only print the plan; this is what happens without --apply.")
@options.json_option
def command(folders: tuple[str, ...], apply: bool, dry_run: bool, as_json: bool) -> None:
    """Plan repairs, and with --apply make them: files that moved are found by their hash in the scanned folders and in
    each FOLDER, stored files that are damaged come back from intact copies, places are marked as they are.

    No file of yours is changed, no version deleted. Exits with 8 when some versions are beyond repair.

    \b
    Examples:
      lorahub repair
      lorahub repair /mnt/backup/loras --apply
    """
    if apply and dry_run:
        raise click.UsageError("--apply and --dry-run exclude each other")
    with output.progress("looking"):
        from lorahub.workspace.core import Workspace
        from lorahub.workspace.mending import repair
        from lorahub.workspace.plain import to_plain

        with Workspace.open() as workspace:
            done = repair(workspace, under=folders, apply=apply)
    output.emit({"command": "repair", **to_plain(done)}, _as_lines, as_json)
    if done.beyond_repair:
        click.get_current_context().exit(8)


def _as_lines(result: dict[str, Any]) -> list[str]:
    lines = [f"{step['action']}: {step['reference']}: {step['reason']}" for step in result["steps"]]
    lines += [f"beyond repair: {reference}: no copy of its file is known" for reference in result["beyond_repair"]]
    if result["steps"] and not result["applied"]:
        lines.append(f"{len(result['steps'])} steps: run `lorahub repair --apply` to take them")
    return lines or ["nothing to repair"]
