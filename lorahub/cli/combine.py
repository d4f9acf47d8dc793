"""lorahub combine"""

from __future__ import annotations

from typing import Any

import click

from lorahub.cli import made, options, output

_ASKED = ("weights", "orthogonal_to", "normalise", "settings", "base", "allow_pickle")


@click.command(cls=options.ExpressionCommand, short_help="Add, subtract and scale adapters into one file.")
@click.argument("expression", type=options.Expression())
@options.output_options
@options.rank_options
@options.format_option("--format", "Spelling of the file. [kohya]")
@click.option(
    "--weight",
    "weights",
    nargs=3,
    type=(str, str, options.Weight()),
    multiple=True,
    metavar="ADAPTER REGEX W",
    help="Multiply an adapter's layers whose name matches REGEX by W; ADAPTER as in the expression, or '*'.",
)
@click.option(
    "--method", metavar="NAME", help="Merge instead of adding: ties, dare_ties, knots_ties ... (`lorahub methods`)."
)
@options.settings_option("A setting of the method, such as density=0.3; may be repeated.")
@click.option(
    "--orthogonal-to",
    metavar="REF",
    type=options.Reference(),
    help="First take the direction of this adapter out of every other one, layer by layer.",
)
@click.option("--normalise", is_flag=True, help="Scale the result to the norm of the first adapter at weight 1.")
@options.base_option
@options.device_option
@options.pickle_option
@options.json_option
def command(expression: str, as_json: bool, **given: Any) -> None:
    """Add, subtract and scale adapters: EXPRESSION is like "0.8*style + 1.0*lcm".

    Exact, whatever the formats and ranks of the inputs; without a rank rule the ranks add up. + and - need
    spaces around them; a path with spaces is quoted. What the operands are is checked first (see `compatible`):
    doubts are warnings; what should not be added (two acceleration vectors at full weight) needs --force.

    --method merges in a way that addition cannot express. Most methods have a result of full rank, so they need a rank
    rule; what the reduction leaves out is reported. --orthogonal-to keeps an operand from weakening another:
    REF, an operand or any adapter, stays as it is, and the others lose what they have in common with it.

    \b
    Examples:
      lorahub combine "0.8*./papercut.safetensors + 1.0*./lcm-lora.safetensors" -o fast.safetensors --rank 64
      lorahub combine "style - 0.5*'my blur.safetensors'" -o sharp.safetensors --max-size 100MB
      lorahub combine "0.8*papercut@prod + 1.0*lcm:2" --name fast-papercut --tag fast --rank 64
      lorahub combine "a + b" -o c.safetensors --weight a "down_blocks" 0.5 --weight b "attn2" 0
      lorahub combine "a + b + c" -o d.safetensors --method ties -s density=0.3 --rank 64 --normalise
      lorahub combine "0.8*style + 1.0*lcm" -o fast.safetensors --orthogonal-to lcm
    """
    if given["settings"] and given["method"] is None:
        raise click.UsageError("-s sets something of a method: name one with --method")
    with output.progress("combining") as advance:
        from lorahub.loading import combination
        from lorahub.making import LINEAR, Wish
        from lorahub.workspace.operands import check_operands

        how = {name: given.pop(name) for name in _ASKED}
        where = {"path": given.pop("output"), "name": given.pop("name"), "tags": given.pop("tags")}
        asked = combination(expression, method=given.pop("method") or LINEAR, **how)
        wish = Wish(**{name: value for name, value in given.items() if value is not None})
        doubts = check_operands(asked.planned.recipe, force=wish.force)
        result = made.produce("combine", asked, wish, **where, progress=advance)
    for doubt in doubts:
        click.echo(f"Warning: {output.one_line(doubt.message)}", err=True)
    output.emit(result, made.as_lines, as_json)
