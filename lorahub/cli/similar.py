"""lorahub similar"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from lorahub.cli import options, output

PARTIAL = 8


@click.command(short_help="Find the adapters nearest to one by their weights.")
@click.argument("adapter", required=False, type=options.Reference())
@click.option("--limit", type=click.IntRange(min=1), default=10, show_default=True, help="How many to print.")
@click.option(
    "--least",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    metavar="COSINE",
    help="The smallest cosine, of either sign, that counts.",
)
@click.option("--estimate", is_flag=True, help="Rank by sketches alone, without reading the files: off by 0.02 or so.")
@click.option("--refresh", is_flag=True, help="First sketch every adapter of the registry that has no sketch yet.")
@options.json_option
def command(adapter: str | None, limit: int, least: float, estimate: bool, refresh: bool, as_json: bool) -> None:
    """Find the adapters of the registry that are nearest to one by their weights.

    The same weights in another spelling, a resized copy, or an earlier merge are found although every hash differs.
    Candidates come from sketches kept in the registry; the cosines printed come from the files.

    \b
    Examples:
      lorahub similar papercut
      lorahub similar ./download.safetensors --limit 3
      lorahub similar --refresh
    """
    if adapter is None and not refresh:
        raise click.UsageError("name an adapter, or pass --refresh")
    result: dict[str, Any] = {"command": "similar", "refreshed": None, "found": None}
    with output.progress("comparing") as advance:
        from dataclasses import asdict

        from lorahub.workspace import similarity
        from lorahub.workspace.core import Workspace

        with Workspace.open() as workspace:
            if refresh:
                result["refreshed"] = asdict(similarity.refresh(workspace, progress=advance))
            if adapter is not None:
                found = similarity.similar(
                    workspace, adapter, limit=limit, least=least, exact=not estimate, progress=advance
                )
                result["found"] = asdict(found)
    output.emit(result, _as_lines, as_json)
    lacking = result["found"]["unsketched"] if result["found"] is not None else 0
    if lacking and not refresh:
        click.echo(f"{lacking} adapters have no sketch and were not looked at: `lorahub similar --refresh`", err=True)
    if refresh and result["refreshed"]["failed"]:
        click.get_current_context().exit(PARTIAL)


def _as_lines(result: dict[str, Any]) -> Iterator[str]:
    if result["refreshed"] is not None:
        yield f"{result['refreshed']['made']} sketches made"
        for reference, reason in result["refreshed"]["failed"]:
            yield f"  not {reference}: {reason}"
    found = result["found"]
    if found is None:
        return
    yield f"{found['reference']}: {found['base']}, norm {found['norm']:.4g}, compared with {found['compared']} sketches"
    for match in found["matches"]:
        sign = "" if match["exact"] else "about "
        yield f"  {sign}{match['cosine']:.4f}  {match['reference']}  ({match['scale']:.3g} of it along the same line)"
    if not found["matches"]:
        yield "  nothing is near it"
