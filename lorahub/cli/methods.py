"""lorahub methods"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from lorahub.cli import options, output


@click.command(short_help="List the merge methods, what they do and take.")
@click.argument("name", required=False)
@options.json_option
def command(name: str | None, as_json: bool) -> None:
    """List the methods of `combine --method`, or show NAME with its settings, paper and cost.

    Methods that are dense make ΔW of full rank and need a rank rule; the others stay low-rank by themselves.

    \b
    Examples:
      lorahub methods
      lorahub methods ties
      lorahub methods --json
    """
    from lorahub.merge.methods import METHODS, find

    chosen = [find(name)] if name else [*METHODS.values()]
    rows = [
        {
            "name": method.name,
            "summary": method.summary,
            "paper": method.paper,
            "cost": method.cost,
            "sparsify": method.sparsify,
            "consensus": method.consensus,
            "adapters": method.needs,
            "dense": method.dense,
            "draws": method.draws,
            "settings": {
                key: {"default": setting.default, "expected": setting.expected, "help": setting.help}
                for key, setting in method.settings.items()
            },
        }
        for method in chosen
    ]
    result = {"command": "methods", "methods": rows}
    output.emit(result, _details if name else _overview, as_json)


def _overview(result: dict[str, Any]) -> list[str]:
    width = max(len(row["name"]) for row in result["methods"])
    return [f"{row['name']:{width}}  {row['summary']} [{row['paper']}]" for row in result["methods"]]


def _details(result: dict[str, Any]) -> Iterator[str]:
    (row,) = result["methods"]
    yield f"{row['name']}: {row['summary']}"
    yield f"  paper     {row['paper']}"
    yield f"  cost      {row['cost']}"
    yield f"  result    {'full rank: give a rank rule' if row['dense'] else 'low-rank; a rank rule is optional'}"
    yield f"  adapters  {'two' if row['adapters'] == 'two' else 'any number'}"
    for key, setting in row["settings"].items():
        yield f"  -s {key}={setting['default']}  {setting['help']} ({setting['expected']})"
