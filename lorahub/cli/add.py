"""lorahub add"""

from __future__ import annotations

from typing import Any

import click

from lorahub.cli import catalogue, options, output


@click.command(short_help="Add adapter files to the registry.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path())
@click.option("--in-place", is_flag=True, help="Record the file where it lies, instead of copying it into the store.")
@click.option("--name", help="What to call it, instead of as the file is called; only with one file.")
@click.option("--tag", "tags", multiple=True, help="Put this tag on it; may be repeated.")
@click.option("--kind", type=click.Choice(catalogue.KINDS), help="What it is, when the header does not tell.")
@click.option("--note", default="", help="Text to keep with it.")
@click.option("--no-weights", is_flag=True, help="Do not read the weights: faster, but no fingerprint and no norms.")
@catalogue.dry_run_option
@options.json_option
def command(files: tuple[str, ...], no_weights: bool, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Add files as the next versions of their names: copied into the store, or recorded in place.

    A file that its name has already stays as it is. Exits with 8 when some of several files could not be added.

    \b
    Examples:
      lorahub add papercut.safetensors --tag favourite
      lorahub add /mnt/loras/lcm-lora-sdv1-5.safetensors --in-place --name lcm
    """
    with output.progress("adding"):
        from lorahub.workspace import adding
        from lorahub.workspace.core import Workspace
        from lorahub.workspace.plain import to_plain

        with Workspace.open() as workspace:
            done = adding.add(workspace, files, weights=not no_weights, dry_run=dry_run, **given)
    result = {"command": "add", "dry_run": dry_run, **to_plain(done)}
    output.emit(result, _as_lines, as_json)
    if done.failed:
        click.get_current_context().exit(8)


def _as_lines(result: dict[str, Any]) -> list[str]:
    verb = "would add" if result["dry_run"] else "added"
    lines = [
        f"{verb if each['outcome'] == 'new' else 'known:'} {each['reference']}  sha256:{each['sha256'][:12]}  "
        f"{'stored' if each['stored'] else 'in place'}"
        for each in result["added"]
    ]
    return lines + [f"not added: {path}: {reason}" for path, reason in result["failed"]]
