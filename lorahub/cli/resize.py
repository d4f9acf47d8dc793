"""lorahub resize"""

from __future__ import annotations

import click

from lorahub.cli import made, options, output


@click.command(short_help="Reduce the rank of an adapter.")
@click.argument("adapter", type=options.Reference())
@options.output_options
@options.rank_options
@options.format_option("--format", "Spelling of the file. [kohya]")
@options.base_option
@options.device_option
@options.pickle_option
@options.json_option
def command(adapter: str, as_json: bool, **given: object) -> None:
    """Reduce the rank of an adapter: the best approximation there is, with the error it makes.

    \b
    Examples:
      lorahub resize lcm-lora.safetensors -o lcm-16.safetensors --rank 16
      lorahub resize big.safetensors -o small.safetensors --energy 0.95
      lorahub resize big.safetensors -o small.safetensors --max-size 50MB
      lorahub resize style:2 --name style-small --rank 8
    """
    if not options.rule_is_given(given):
        raise click.UsageError("say how small: --rank, --energy, --relative or --max-size")
    with output.progress("resizing") as advance:
        from lorahub.loading import load
        from lorahub.making import Wish

        base, allow_pickle = (given.pop(name) for name in ("base", "allow_pickle"))
        where = {"path": given.pop("output"), "name": given.pop("name"), "tags": given.pop("tags")}
        wish = Wish(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
        vector = load(adapter, base=base, allow_pickle=bool(allow_pickle))  # type: ignore[arg-type]
        result = made.produce("resize", vector, wish, **where, progress=advance)  # type: ignore[arg-type]
    output.emit(result, made.as_lines, as_json)
