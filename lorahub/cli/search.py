"""lorahub search"""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from lorahub.cli import catalogue, output, table

_HEADER = ("REPOSITORY", "BASE", "DOWNLOADS", "LIKES", "LICENCE", "TRIGGER WORDS")
_LOCAL = ("rank", "kind", "tag", "format", "sort")


@click.command(short_help="Find adapters by words, here or on the Hub.")
@click.argument("query", nargs=-1, required=True)
@click.option(
    "--hub", is_flag=True, help="Search the Hugging Face Hub, by names of repositories; with --base, for that base."
)
@catalogue.filters
def command(query: tuple[str, ...], hub: bool, limit: int, quiet: bool, as_json: bool, **filters: Any) -> None:
    """Find adapters in whose names, tags, trigger words, notes and paths all words occur, the best matches first.

    A word also finds what begins with it; "a phrase" in double quotes is found exactly. Output as of `list`. With --hub,
    LoRAs on the Hugging Face Hub instead, the most downloaded first; `lorahub pull` takes what is found.

    \b
    Examples:
      lorahub search papercut
      lorahub search '"paper cut" style' --base sdxl --json
      lorahub search --hub papercut --base sdxl --limit 10
    """
    if hub:
        _on_hub(" ".join(query), limit, quiet, as_json, filters)
        return
    from lorahub.workspace import listing
    from lorahub.workspace.core import Workspace

    with Workspace.open() as workspace:
        found = listing.search(workspace, " ".join(query), limit=limit + 1 if limit else None, **filters)
    catalogue.listed("search", found, limit, quiet=quiet, as_json=as_json)


def _on_hub(query: str, limit: int, quiet: bool, as_json: bool, filters: dict[str, Any]) -> None:
    context = click.get_current_context()
    for name in _LOCAL:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name} cannot be asked of the Hub: only --base and --limit can")
    if not limit:
        raise click.UsageError("--limit 0 cannot be asked of the Hub: say how many at most")
    from lorahub.hub.finding import search
    from lorahub.workspace.plain import to_plain

    found = search(query, base=filters["base"], limit=limit)
    if quiet and not as_json:
        output.emit({}, lambda _: [hit.repo for hit in found], as_json) if found else None
        return
    rows = [
        (hit.repo, hit.base or hit.base_model, hit.downloads, hit.likes, hit.licence, hit.trigger_words)
        for hit in found
    ]
    table.emit({"command": "search", "hub": to_plain(found)}, _HEADER, rows, as_json)
