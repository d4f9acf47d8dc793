"""Rows for people and for programs: an aligned table on a terminal, tab-separated values without a header in a pipe.

What strangers wrote cannot move a cursor, start a new row or column, or become a formula where a table is opened in a
spreadsheet: a cell that begins with = + - @ gets an apostrophe before it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

from lorahub.cli import output

MISSING = "-"


def emit(result: dict[str, Any], header: Sequence[str], rows: Iterable[Sequence[object]], as_json: bool) -> None:
    """The result as JSON, or its rows; nothing at all where there are none."""
    if as_json:
        output.emit(result, lambda _: [], as_json)
        return
    text = "".join(f"{line}\n" for line in lines(header, rows))
    if text:
        click.echo(text, nl=False)


def lines(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The rows as lines of text; on a terminal aligned under the header, else with tabs."""
    table = [[_cell(value) for value in row] for row in rows]
    if not sys.stdout.isatty():
        return ["\t".join(map(inert, row)) for row in table]
    if not table:
        return []
    table.insert(0, list(header))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def inert(cell: str) -> str:
    """The cell as no spreadsheet takes it for a formula."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@")) and cell != MISSING else cell


def size(number: int) -> object:
    """A size for people on a terminal, in bytes in a pipe."""
    return output.human_size(number) if sys.stdout.isatty() else number


def _cell(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else "" if value is None else str(value)
    return (text if text.isprintable() else output.escaped(text)) or MISSING
