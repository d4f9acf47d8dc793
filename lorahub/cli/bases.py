"""lorahub bases"""

from __future__ import annotations

from typing import Any

import click

from lorahub.cli import options, output


@click.command(short_help="List the known base models.")
@options.json_option
def command(as_json: bool) -> None:
    """List the base models whose layers lorahub knows by name and shape.

    \b
    Example:
      lorahub bases
    """
    from lorahub import bases

    known = [bases.get(name) for name in bases.names()]
    rows = [
        {
            "name": base.name,
            "title": base.title,
            "components": {part.name: len(part.layers) for part in base.components.values()},
            "hub_ids": list(base.hub_ids),
        }
        for base in known
    ]
    output.emit({"command": "bases", "bases": rows}, _as_lines, as_json)


def _as_lines(result: dict[str, Any]) -> list[str]:
    lines = []
    for base in result["bases"]:
        parts = ", ".join(f"{name} {count}" for name, count in base["components"].items())
        lines.append(f"{base['name']:14} {base['title']:44} layers: {parts}")
    return lines
