"""lorahub convert"""

from __future__ import annotations

import click

from lorahub.cli import made, options, output


@click.command(short_help="Respell an adapter for another tool.")
@click.argument("adapter", type=options.Reference())
@options.output_options
@options.format_option("--to", "Spelling.", required=True)
@options.base_option
@options.pickle_option
@options.json_option
def command(adapter: str, as_json: bool, **given: object) -> None:
    """Respell an adapter for another tool; ΔW stays the same. The dtype stays too, unless --dtype says otherwise.

    LoHa, LoKr and Tucker files become plain LoRA files, exactly.

    \b
    Examples:
      lorahub convert style.safetensors -o style-diffusers.safetensors --to diffusers
      lorahub convert lora-folder/ -o style.safetensors --to kohya --dtype bf16
    """
    with output.progress("converting"):
        from lorahub.loading import load
        from lorahub.making import Wish, dtype_of

        base, allow_pickle = (given.pop(name) for name in ("base", "allow_pickle"))
        where = {"path": given.pop("output"), "name": given.pop("name"), "tags": given.pop("tags")}
        vector = load(adapter, base=base, allow_pickle=bool(allow_pickle))  # type: ignore[arg-type]
        given["dtype"] = given["dtype"] or dtype_of(vector)
        result = made.produce("convert", vector, Wish(**given), **where)  # type: ignore[arg-type]
    output.emit(result, made.as_lines, as_json)
