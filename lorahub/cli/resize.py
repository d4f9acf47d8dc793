"""lorahub resize"""

from __future__ import annotations

import click

from lorahub.cli import made, options


@click.command(short_help="Reduce the rank of an adapter.")
@click.argument("adapter", type=options.Reference())
@options.output_options
@options.rank_options
@click.option("--format", type=click.Choice(["kohya", "diffusers", "peft"]), help="Spelling of the file. [kohya]")
@options.base_option
@options.device_option
@options.pickle_option
@options.json_option
def command(adapter: str, output: str, as_json: bool, **given: object) -> None:
    """Reduce the rank of an adapter: the best approximation there is, with the error it makes.

    \b
    Examples:
      lorahub resize lcm-lora.safetensors -o lcm-16.safetensors --rank 16
      lorahub resize big.safetensors -o small.safetensors --energy 0.95
      lorahub resize big.safetensors -o small.safetensors --max-size 50MB
    """
    from lorahub.errors import UsageError
    from lorahub.loading import load
    from lorahub.making import Wish, make

    base, allow_pickle = (given.pop(name) for name in ("base", "allow_pickle"))
    wish = Wish(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    if not wish.has_rule:
        raise UsageError("say how small: --rank, --energy, --relative or --max-size")
    vector = load(adapter, base=base, allow_pickle=bool(allow_pickle))  # type: ignore[arg-type]
    with options.progress("resizing") as advance:
        result = make(vector, output, wish, progress=advance)
    options.emit(made.as_result("resize", result), made.as_text, as_json)
