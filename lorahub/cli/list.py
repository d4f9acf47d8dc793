"""lorahub list"""

from __future__ import annotations

from typing import Any

import click

from lorahub.cli import catalogue


@click.command(name="list", short_help="List the adapters in the registry.")
@catalogue.filters
def command(limit: int, quiet: bool, as_json: bool, **filters: Any) -> None:
    """List the adapters in the registry, each by its newest version.

    A table on a terminal; in a pipe tab-separated values without a header: adapter, base, kind, rank, size in
    bytes, tags, aliases; - where there is none.

    \b
    Examples:
      lorahub list --base sdxl --rank 8:64 --sort -created
      lorahub list -q --tag old | lorahub remove - --dry-run
    """
    from lorahub.workspace import listing
    from lorahub.workspace.core import Workspace

    with Workspace.open() as workspace:
        found = listing.list_adapters(workspace, limit=limit + 1 if limit else None, **filters)
    catalogue.listed("list", found, limit, quiet=quiet, as_json=as_json)
