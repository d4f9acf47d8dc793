"""lorahub compare"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from lorahub.cli import options, output


@click.command(short_help="Compare two adapters as vectors.")
@click.argument("first", type=options.Reference())
@click.argument("second", type=options.Reference())
@click.option("--layers", "show_layers", is_flag=True, help="Also print every layer.")
@options.base_option
@options.device_option
@options.pickle_option
@options.json_option
def command(
    first: str, second: str, show_layers: bool, base: str | None, device: str, allow_pickle: bool, as_json: bool
) -> None:
    """Compare two adapters as vectors: norms, cosine, distance, and how much of their rank they use.

    \b
    Examples:
      lorahub compare style.safetensors lcm-lora.safetensors
      lorahub compare v1.safetensors v2.safetensors --layers
    """
    with output.progress("comparing") as advance:
        from lorahub.comparing import compare
        from lorahub.loading import load_all

        one, other = load_all([first, second], base=base, allow_pickle=allow_pickle, hashed=False)
        found = compare(one, other, device=device, progress=advance)
    result = {"command": "compare", "first": first, "second": second, "base": one.base, **asdict(found)}
    output.emit(result, lambda facts: _as_lines(facts, show_layers), as_json)


def _as_lines(result: dict[str, Any], show_layers: bool) -> list[str]:
    lines = [f"{'':24}  {'first':>12}  {'second':>12}"]
    lines.append(_row("norm", *(f"{norm:.6g}" for norm in result["norms"])))
    lines.append(_row("layers", *_layer_counts(result)))
    for label, key in (("mean rank stored", "stored"), ("mean rank used", "used"), ("mean rank of 99 %", "energy")):
        lines.append(_row(label, *(f"{use[key]:.4g}" for use in result["rank_use"])))
    lines.append(_row("zero layers", *(str(use["zero_layers"]) for use in result["rank_use"])))
    cosine = "undefined (one is zero)" if result["cosine"] is None else f"{result['cosine']:.6f}"
    lines.append(f"cosine {cosine}, distance {result['distance']:.6g}, base {result['base']}")
    if show_layers:
        lines += ["", "layer, norms, cosine"]
        for name, layer in result["layers"].items():
            angle = "" if layer["cosine"] is None else f"{layer['cosine']:.4f}"
            lines.append(f"{name}  {layer['norms'][0]:.4g}  {layer['norms'][1]:.4g}  {angle}")
    return lines


def _layer_counts(result: dict[str, Any]) -> tuple[str, str]:
    count = len(result["layers"])
    return str(count - len(result["only_in_second"])), str(count - len(result["only_in_first"]))


def _row(label: str, first: str, second: str) -> str:
    return f"{label:24}  {first:>12}  {second:>12}"
