"""lorahub bake"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lorahub.cli import options, output

if TYPE_CHECKING:
    from lorahub.baking import Baked


@click.command(cls=options.ExpressionCommand, short_help="Add adapters into a checkpoint.")
@click.argument("expression", type=options.Expression())
@click.option(
    "--into", required=True, type=click.Path(), help="The base model: a .safetensors file, or a diffusers folder."
)
@click.option(
    "-o", "--output", "out", required=True, type=click.Path(), help="What to write: a file, or a folder, as --into is."
)
@click.option("--check", is_flag=True, help="Also run the model, baked and with the adapters put on, and compare.")
@click.option(
    "--drop", multiple=True, type=click.Choice(["text-encoder", "embeddings"]), help="Leave these of the adapters out."
)
@click.option("--variant", metavar="NAME", help="Which weights of a folder to bake into, such as fp16.")
@click.option("--force", is_flag=True, help="Overwrite the output if it exists.")
@options.base_option
@options.device_option
@options.pickle_option
@options.json_option
def command(expression: str, out: str, as_json: bool, **given: Any) -> None:
    """Add adapters into a checkpoint, which then needs none: EXPRESSION is like "0.8*style + 1.0*lcm".

    The checkpoint streams through; every other tensor and file is copied as it is, and the result is read back
    and compared. A DoRA, which is no vector, is baked too: its weight moves each layer from what it is (0) to
    what was trained (1). The dtype stays: in fp8, rounding swallows much of an adapter, and is reported.

    \b
    Examples:
      lorahub bake "0.8*style + 1.0*lcm" --into sd15.safetensors -o sd15-fast.safetensors
      lorahub bake style.safetensors --into stable-diffusion-v1-5/ -o styled/ --check
      lorahub bake dora.safetensors --into sdxl/unet -o styled-unet --drop text-encoder
    """
    with output.progress("baking") as advance:
        from lorahub.baking import bake

        done = bake(expression, given.pop("into"), out, progress=advance, **given)
    output.emit(_as_result(done), _as_lines, as_json)


def _as_result(done: Baked) -> dict[str, Any]:
    from dataclasses import asdict

    facts = asdict(done)
    return {"command": "bake", "output": str(facts.pop("path")), **facts}


def _as_lines(result: dict[str, Any]) -> list[str]:
    dora = f" ({result['dora_layers']} by DoRA)" if result["dora_layers"] else ""
    vectors = f" and {result['vectors']} biases or norms" if result["vectors"] else ""
    lines = [
        f"{result['output']}: {result['base']}, {', '.join(result['dtypes'])}, {output.human_size(result['size'])}",
        f"  {result['expression']} baked into {result['into']}: {result['layers']} layers{dora}{vectors}",
        f"  read back and compared: rounding changes ΔW by {result['rounding']:.1e} of its norm",
    ]
    if result["check"]:
        effects = ", ".join(f"{name} {effect:.2g}" for name, effect in result["check"]["effect"].items())
        lines.append(
            f"  check: outputs differ by {result['check']['difference']:.1e} from those with the adapters put on "
            f"(at most {result['check']['tolerance']:g}; the adapters change them by {effects})"
        )
    if result["left_out"]:
        lines.append(f"  not copied, since these are unbaked weights: {', '.join(result['left_out'])}")
    lines += [f"  note: {note}" for note in result["notes"]]
    return lines
