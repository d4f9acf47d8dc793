"""lorahub scan"""

from __future__ import annotations

from typing import Any

import click

from lorahub.cli import catalogue, options, output


@click.command(short_help="Index folders of adapters where they are.")
@click.argument("roots", metavar="[ROOT]...", nargs=-1, type=click.Path())
@click.option("--no-hash", is_flag=True, help="Only read headers; a later scan hashes what is left.")
@click.option("--deep", is_flag=True, help="Also read weights that were not read yet: fingerprints, norms, damage.")
@click.option("--follow-links", is_flag=True, help="Follow symbolic links to files and folders.")
@catalogue.dry_run_option
@options.json_option
def command(
    roots: tuple[str, ...], no_hash: bool, deep: bool, follow_links: bool, dry_run: bool, as_json: bool
) -> None:
    """Index the adapters under each ROOT, or under all folders that were scanned before, without writing to them.

    Headers are read first, then files are hashed; an interrupted scan goes on where it was. What moved keeps its
    name and edits, what changed becomes a new version, what is gone is marked missing and never deleted. Exits with 8
    when files were skipped or a folder is not there.

    \b
    Examples:
      lorahub scan ~/ComfyUI/models/loras
      lorahub scan /mnt/nas/loras --no-hash
      lorahub scan
    """
    with output.progress("scanning") as advance:
        from lorahub.workspace.core import Workspace
        from lorahub.workspace.plain import to_plain
        from lorahub.workspace.scanning import scan

        def show(phase: str, done: int, total: int) -> None:
            if advance is not None and phase == "headers":
                advance(done, total, "headers")
            elif advance is not None:
                advance(done // 10**6, total // 10**6, "MB hashed")

        with Workspace.open() as workspace:
            done = scan(
                workspace,
                roots,
                hash=not no_hash,
                weights=deep,
                follow_links=follow_links,
                dry_run=dry_run,
                progress=show,
            )
    result = {"command": "scan", "dry_run": dry_run, **to_plain(done)}
    output.emit(result, _as_lines, as_json)
    if done.partial:
        click.get_current_context().exit(8)


def _as_lines(result: dict[str, Any]) -> list[str]:
    counts = ("new", "moved", "replaced", "unchanged", "returned", "missing", "hashed")
    told = ", ".join(f"{result[name]} {name}" for name in counts if result[name])
    lines = [f"{result['files']} files in {', '.join(result['roots']) or 'no folder'}: {told or 'nothing new'}"]
    if result["to_hash"]:
        lines.append(f"{result['to_hash']} files are still to be hashed: run `lorahub scan`")
    lines += [
        f"offline? {root} holds nothing of what it held: its adapters are marked missing, nothing is deleted"
        for root in result["offline"]
    ]
    return lines + [f"skipped: {path}: {reason}" for path, reason in result["skipped"]]
