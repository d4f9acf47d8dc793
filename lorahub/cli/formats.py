"""lorahub formats"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from lorahub.cli import options, output


@click.command(short_help="List the file formats.")
@options.json_option
def command(as_json: bool) -> None:
    """List the file formats lorahub reads and writes.

    \b
    Example:
      lorahub formats
    """
    from lorahub.formats.layout import FORMATS

    rows = [{"name": name, **asdict(entry)} for name, entry in FORMATS.items() if entry.readable]
    output.emit({"command": "formats", "formats": rows}, _as_lines, as_json)


def _as_lines(result: dict[str, Any]) -> list[str]:
    return [
        f"{row['name']:14} {'read, write' if row['writable'] else 'read':12} {row['description']}"
        for row in result["formats"]
    ]
