"""lorahub extract"""

from __future__ import annotations

from typing import Any

import click

from lorahub.cli import made, options, output


@click.command(short_help="Turn a fine-tuned model minus its base into an adapter.")
@click.option("--base", "base", required=True, type=click.Path(), metavar="CHECKPOINT", help="The model it came from.")
@click.option("--tuned", required=True, type=click.Path(), metavar="CHECKPOINT", help="The fine-tuned model.")
@options.output_options
@options.rank_options
@click.option("--only", multiple=True, metavar="COMPONENT", help="Compare only this part: unet, text_encoder, ...")
@click.option("--offsets", is_flag=True, help="Keep the differences of norms and biases too (kohya files only).")
@options.format_option("--format", "Spelling of the file. [kohya]")
@options.device_option
@options.json_option
def command(base: str, tuned: str, as_json: bool, **given: Any) -> None:
    """Turn a fine-tuned model minus its base into an adapter: the difference of their weights at low rank.

    A CHECKPOINT is a single .safetensors file or a diffusers folder, sharded or not, in any precision. Both are
    read layer by layer and never loaded whole. A distilled model becomes an acceleration vector this way.

    \b
    Examples:
      lorahub extract --base v1-5-pruned.safetensors --tuned my-model.safetensors -o style.safetensors --rank 64
      lorahub extract --base sdxl/ --tuned lcm-sdxl/ -o lcm.safetensors --max-size 200MB --only unet
      lorahub extract --base sd15.safetensors --tuned lcm15/ --name lcm --energy 0.9
    """
    if not options.rule_is_given(given):
        raise click.UsageError("say how small: --rank, --energy, --relative or --max-size")
    with output.progress("extracting") as advance:
        from dataclasses import replace
        from pathlib import Path

        from lorahub.algebra.adapter import Adapter
        from lorahub.algebra.ranks import RankRule
        from lorahub.extracting import extract
        from lorahub.files.saving import DTYPES, default_format
        from lorahub.making import Wish

        only, offsets = given.pop("only"), given.pop("offsets")
        where = {"path": given.pop("output"), "name": given.pop("name"), "tags": given.pop("tags")}
        wish = Wish(**{name: value for name, value in given.items() if value is not None})

        def rule(adapter: Adapter) -> RankRule:
            chosen = wish.format or default_format(adapter.base, Path(where["path"] or "made.safetensors"))
            found = wish.rule(adapter, chosen)
            assert found is not None
            return found

        adapter = extract(
            base,
            tuned,
            rule if wish.max_size else rule(Adapter("", {})),
            only=only,
            offsets=offsets,
            dtype=DTYPES[wish.dtype],
            device=wish.device,
            progress=advance,
        )
        wish = replace(wish, rank=None, energy=None, relative=None, max_size=None)  # the rule has been applied
        result = made.produce("extract", adapter, wish, **where, progress=advance)
    result |= {
        "rule": adapter.rule,
        "same": adapter.same,
        "left_out": dict(adapter.left_out),
        "notes": list(adapter.notes),
    }
    output.emit(result, _lines, as_json)


def _lines(result: dict[str, Any]) -> list[str]:
    lines = made.as_lines(result)
    if result["same"]:
        lines.append(f"  {result['same']} layers do not differ")
    for what, share in result["left_out"].items():
        remedy = " (--offsets keeps them)" if what == "norms and biases" else ""
        lines.append(f"  {what} differ too, by {share:.2%} of the norm of the whole difference: left out{remedy}")
    return lines + [f"  {note}" for note in result["notes"]]
