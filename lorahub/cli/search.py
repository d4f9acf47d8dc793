"""lorahub search"""

from __future__ import annotations

from typing import Any

import click

from lorahub.cli import catalogue


@click.command(short_help="Find adapters by words.")
@click.argument("query", nargs=-1, required=True)
@catalogue.filters
def command(query: tuple[str, ...], limit: int, quiet: bool, as_json: bool, **filters: Any) -> None:
    """Find adapters in whose names, tags, trigger words, notes and paths all words occur, the best matches first.

    A word also finds what begins with it; "a phrase" in double quotes is found exactly. Output as of `list`.

    \b
    Examples:
      lorahub search papercut
      lorahub search '"paper cut" style' --base sdxl --json
    """
    from lorahub.workspace import listing
    from lorahub.workspace.core import Workspace

    with Workspace.open() as workspace:
        found = listing.search(workspace, " ".join(query), limit=limit + 1 if limit else None, **filters)
    catalogue.listed("search", found, limit, quiet=quiet, as_json=as_json)
