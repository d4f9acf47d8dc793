"""lorahub doctor"""

from __future__ import annotations

from typing import Any

import click

from lorahub.cli import options, output


@click.command(short_help="Say on one page what is installed, where things lie, and what is wrong.")
@options.json_option
def command(as_json: bool) -> None:
    """Say what is installed, where the registry and its files lie, and what is wrong with them; exits with 8 if
    something is.

    \b
    Example:
      lorahub doctor
    """
    from lorahub.workspace.doctor import diagnose
    from lorahub.workspace.plain import to_plain

    found = diagnose()
    output.emit({"command": "doctor", **to_plain(found)}, _as_lines, as_json)
    if found.problems:
        click.get_current_context().exit(8)


def _as_lines(result: dict[str, Any]) -> list[str]:
    lines = [", ".join(f"{name} {value or '(not installed)'}" for name, value in result["versions"].items())]
    lines += [f"database: {result['database']}", f"store: {result['store']}"]
    if result["info"]:
        lines.append(f"{result['info']['adapters']} adapters, {result['info']['versions']} versions")
    if result["free_bytes"] is not None:
        lines.append(f"free: {output.human_size(result['free_bytes'])}")
    lines += [f"folder: {root}" for root in result["roots"]]
    lines += [f"problem: {each['what']} -> {each['remedy']}" for each in result["problems"]]
    return lines if result["problems"] else [*lines, "no problem found"]
