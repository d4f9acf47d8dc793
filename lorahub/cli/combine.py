"""lorahub combine"""

from __future__ import annotations

import re

import click

from lorahub.cli import made, options, output

_NEGATED = re.compile(r"-(\s|[\d.]+\s*\*|[^-].*\s[+-]\s)")


class _Combine(click.Command):
    """Takes an argument such as `-1*style` or `-style + lcm` for the expression it is, not for options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [f" {word}" if _NEGATED.match(word) else word for word in args])


@click.command(cls=_Combine, short_help="Add, subtract and scale adapters into one file.")
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
@options.base_option
@options.device_option
@options.pickle_option
@options.json_option
def command(expression: str, as_json: bool, **given: object) -> None:
    """Add, subtract and scale adapters: EXPRESSION is like "0.8*style + 1.0*lcm".

    Exact, whatever the formats and ranks of the inputs; without a rank rule the ranks add up. + and - need
    spaces around them; a path with spaces is quoted. What the operands are is checked first (see `compatible`):
    doubts are warnings; what should not be added (two acceleration vectors at full weight) needs --force.

    \b
    Examples:
      lorahub combine "0.8*./papercut.safetensors + 1.0*./lcm-lora.safetensors" -o fast.safetensors --rank 64
      lorahub combine "style - 0.5*'my blur.safetensors'" -o sharp.safetensors --max-size 100MB
      lorahub combine "0.8*papercut@prod + 1.0*lcm:2" --name fast-papercut --tag fast --rank 64
      lorahub combine "a + b" -o c.safetensors --weight a "down_blocks" 0.5 --weight b "attn2" 0
    """
    with output.progress("combining") as advance:
        from lorahub.loading import combine
        from lorahub.making import Wish
        from lorahub.workspace.operands import check_operands

        weights, base, allow_pickle = (given.pop(name) for name in ("weights", "base", "allow_pickle"))
        where = {"path": given.pop("output"), "name": given.pop("name"), "tags": given.pop("tags")}
        wish = Wish(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
        adapter = combine(expression, base=base, weights=weights, allow_pickle=allow_pickle)  # type: ignore[arg-type]
        doubts = check_operands(adapter.recipe, force=wish.force)
        result = made.produce("combine", adapter, wish, **where, progress=advance)  # type: ignore[arg-type]
    for doubt in doubts:
        click.echo(f"Warning: {output.one_line(doubt.message)}", err=True)
    output.emit(result, made.as_lines, as_json)
