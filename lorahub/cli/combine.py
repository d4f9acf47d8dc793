"""lorahub combine"""

from __future__ import annotations

import click

from lorahub.cli import made, options


@click.command(short_help="Add, subtract and scale adapters into one file.")
@click.argument("expression")
@options.output_options
@options.rank_options
@click.option("--format", type=click.Choice(["kohya", "diffusers", "peft"]), help="Spelling of the file. [kohya]")
@click.option(
    "--weight",
    "weights",
    nargs=3,
    type=(str, str, float),
    multiple=True,
    metavar="ADAPTER REGEX W",
    help="Multiply an adapter's layers whose name matches REGEX by W; ADAPTER as in the expression, or '*'.",
)
@options.base_option
@options.device_option
@options.pickle_option
@options.json_option
def command(expression: str, output: str, as_json: bool, **given: object) -> None:
    """Add, subtract and scale adapters: EXPRESSION is like "0.8*style + 1.0*lcm".

    Exact, whatever the formats and ranks of the inputs; without a rank rule the ranks add up. + and - need
    spaces around them; a path with spaces is quoted.

    \b
    Examples:
      lorahub combine "0.8*./papercut.safetensors + 1.0*./lcm-lora.safetensors" -o fast.safetensors --rank 64
      lorahub combine "style - 0.5*'my blur.safetensors'" -o sharp.safetensors --max-size 100MB
      lorahub combine "a + b" -o c.safetensors --weight a "down_blocks" 0.5 --weight b "attn2" 0
    """
    from lorahub.loading import combine
    from lorahub.making import Wish, make

    weights, base, allow_pickle = (given.pop(name) for name in ("weights", "base", "allow_pickle"))
    wish = Wish(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    adapter = combine(expression, base=base, weights=weights, allow_pickle=allow_pickle)  # type: ignore[arg-type]
    with options.progress("combining") as advance:
        result = make(adapter, output, wish, progress=advance)
    options.emit(made.as_result("combine", result), made.as_text, as_json)
