"""lorahub lineage"""

from __future__ import annotations

import click

from lorahub.cli import options, output


@click.command(short_help="Show what an adapter was made from, and what was made of it.")
@click.argument("adapter", type=options.Reference())
@click.option("--depth", type=click.IntRange(min=1), metavar="N", help="At most N generations up and down.")
@click.option("--dot", "how", flag_value="dot", help="Print a graph for Graphviz.")
@click.option("--command", "how", flag_value="command", help="Print the command that makes it again.")
@options.json_option
def command(adapter: str, depth: int | None, how: str | None, as_json: bool) -> None:
    """Show what an adapter was made from, and what was made of it, with the weights.

    A file that is not in the registry tells its own ancestors, if lorahub wrote it.

    \b
    Examples:
      lorahub lineage fast-papercut
      lorahub lineage fast-papercut --dot | dot -Tsvg > lineage.svg
      lorahub lineage fast-papercut:2 --command
    """
    from dataclasses import asdict

    from lorahub.workspace import lineage
    from lorahub.workspace.core import Workspace

    with Workspace.open() as workspace:
        if how == "command":
            line = lineage.command(workspace, adapter)
            output.emit({"command": "lineage", "reference": adapter, "shell": line}, lambda _: [line], as_json)
            return
        found = lineage.family(workspace, adapter, depth=depth)
    result = {
        "command": "lineage",
        "reference": adapter,
        **asdict(found),
        "nodes": [*map(asdict, found.nodes.values())],
    }
    lines = lineage.dot(found).splitlines() if how == "dot" else lineage.tree(found)
    output.emit(result, lambda _: lines, as_json)
