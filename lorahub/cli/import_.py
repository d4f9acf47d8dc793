"""lorahub import (the underscore keeps clear of the keyword)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lorahub.cli import catalogue, options, output


@click.command(name="import", short_help="Take in an archive that `export` made.")
@click.argument("path", metavar="FILE.tar", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Let overrides, notes and aliases of the archive win over those here.")
@catalogue.dry_run_option
@options.json_option
def command(path: Path, overwrite: bool, dry_run: bool, as_json: bool) -> None:
    """Take in an archive that `export` made, wholly or not at all; every hash is checked before anything enters.

    A version whose file is here under the same name is merged: tags are joined, what was edited here stays. Another
    file becomes the next version of its name. Importing twice changes nothing.

    \b
    Examples:
      lorahub import for-anna.tar --dry-run
      lorahub import for-anna.tar
    """
    from lorahub.workspace import archive
    from lorahub.workspace.core import Workspace
    from lorahub.workspace.plain import to_plain

    with Workspace.open() as workspace, output.progress("importing"):
        done = archive.import_(workspace, path, overwrite=overwrite, dry_run=dry_run)
    output.emit({"command": "import", "dry_run": dry_run, **to_plain(done)}, _lines, as_json)


def _lines(result: dict[str, Any]) -> list[str]:
    would = "would have " if result["dry_run"] else ""
    lines = [f"{would}added {reference}" for reference in result["added"]]
    lines += [f"{would}merged {reference}" for reference in result["merged"]]
    lines += [f"{alias} points elsewhere here: kept (--overwrite takes the archive's)" for alias in result["kept"]]
    if result["unchanged"]:
        lines.append(f"{len(result['unchanged'])} versions were here already")
    return lines or ["the archive holds no adapter"]
