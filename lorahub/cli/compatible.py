"""lorahub compatible"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from lorahub.cli import options, output

INCOMPATIBLE, OPEN = 7, 8


@click.command(short_help="Say whether adapters can be added, and should be.")
@click.argument("adapters", metavar="ADAPTER...", nargs=-1, type=options.Reference())
@click.option(
    "--with", "partner_of", metavar="ADAPTER", type=options.Reference(), help="Rank all that go with this one."
)
@click.option(
    "--weight", "weights", type=options.Weight(), multiple=True, help="Of each adapter, in their order. [1 each]"
)
@click.option("--no-weights", is_flag=True, help="Judge by headers and the registry only; do not read the files.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="With --with: how many to print."
)
@options.base_option
@options.json_option
def command(
    adapters: tuple[str, ...],
    partner_of: str | None,
    weights: tuple[float, ...],
    no_weights: bool,
    limit: int,
    base: str | None,
    as_json: bool,
) -> None:
    """Say whether adapters can be added (one base, in every shape) and should be, each with its reason.

    Should not: two acceleration vectors, schedulers or guidance that contradict, weights that point the same way or
    write over one another, a norm that drowns the other. With --with every adapter of the registry is ranked, by
    records and sketches alone. Exits with 7 when they cannot or should not be added, 8 when the base stays open.

    \b
    Examples:
      lorahub compatible papercut lcm
      lorahub compatible style.safetensors lcm-lora.safetensors --weight 0.8 --weight 1
      lorahub compatible --with lcm --limit 10
    """
    if bool(adapters) == (partner_of is not None) or len(adapters) == 1:
        raise click.UsageError("name two adapters or more, or one with --with")
    if len(set(adapters)) < len(adapters):
        raise click.UsageError("an adapter is named twice")
    if weights and len(weights) != len(adapters):
        raise click.UsageError(f"{len(weights)} weights for {len(adapters)} adapters: give one for each, or none")
    if partner_of is not None:
        _rank(partner_of, base, limit, as_json)
        return
    with output.progress("comparing") as advance:
        from dataclasses import asdict

        from lorahub.references import configured
        from lorahub.workspace.compatibility import compatible

        with configured() as workspace:
            found = compatible(
                workspace, adapters, weights=weights, base=base, read_weights=not no_weights, progress=advance
            )
    output.emit({"command": "compatible", **asdict(found)}, _as_lines, as_json)
    if found.can is None:
        click.get_current_context().exit(OPEN)
    if not found.can or found.should == "no":
        click.get_current_context().exit(INCOMPATIBLE)


def _rank(reference: str, base: str | None, limit: int, as_json: bool) -> None:
    with output.progress("looking"):
        from dataclasses import asdict

        from lorahub.workspace.core import Workspace
        from lorahub.workspace.matching import partners

        with Workspace.open() as workspace:
            found = partners(workspace, reference, base=base, limit=limit)
    output.emit({"command": "compatible", **asdict(found)}, _ranked, as_json)
    if found.unsketched and not as_json:
        click.echo(
            f"{found.unsketched} have no sketch, so their angle is not known: `lorahub similar --refresh`", err=True
        )


def _as_lines(result: dict[str, Any]) -> Iterator[str]:
    can = {True: "yes", False: "no", None: "not known"}[result["can"]]
    yield f"can be added: {can} ({' or '.join(result['bases']) or 'no common base'})"
    yield f"should be added: {result['should']}"
    for finding in result["findings"]:
        yield f"  {finding['severity']}: {finding['message']}"
    for pair in result["pairs"]:
        cosine = "undefined" if pair["cosine"] is None else f"{pair['cosine']:.4f}"
        yield (
            f"{pair['first']} and {pair['second']}: cosine {cosine}, norms {pair['norms'][0]:.4g} and "
            f"{pair['norms'][1]:.4g}, {pair['shared_layers']} layers in common"
        )
        yield (
            f"  of the smaller subspace, {pair['overlap_out']:.1%} of what is written and {pair['overlap_in']:.1%} of "
            f"what is read is in common (by chance {pair['chance']:.1%})"
        )


def _ranked(result: dict[str, Any]) -> Iterator[str]:
    yield f"{len(result['partners'])} adapters for {result['base']} beside {result['reference']}"
    for partner in result["partners"]:
        cosine = "" if partner["cosine"] is None else f", cosine {partner['cosine']:.2f}"
        yield f"  {partner['should']:9}  {partner['reference']}  ({partner['kind']}{cosine})"
        for finding in partner["findings"]:
            yield f"             {finding['severity']}: {finding['message']}"
