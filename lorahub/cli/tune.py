"""lorahub tune"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import click

from lorahub.cli import options, output, picturing

_SHOWN = 20


@click.command(cls=picturing.Remembering, short_help="Search the weights of a combination for the best pictures.")
@click.argument("expression", type=options.Expression())
@picturing.base_model_options(required=True)
@click.option("--steps", type=click.IntRange(1), default=4, show_default=True, help="Of the pictures that are scored.")
@click.option(
    "--score",
    default="texture",
    show_default=True,
    metavar="NAME",
    help="Make this the best: psnr, ssim, lpips, texture, features, frechet, clip or style.",
)
@click.option(
    "--vary",
    multiple=True,
    metavar="NAME=FROM:TO[:BY]",
    help="Search the weight of this operand in this range. [accelerators, from half to one and a half times]",
)
@click.option("--per-block", is_flag=True, help="Search a weight for every block of these operands.")
@click.option(
    "--budget", type=click.IntRange(1), default=100, show_default=True, metavar="N", help="Draw at most N pictures."
)
@click.option("--search-seed", "seed", type=click.IntRange(0), default=0, show_default=True, help="Of the search.")
@picturing.picture_options
@picturing.accelerator_option
@click.option(
    "-o", "--output", "page", type=click.Path(dir_okay=False), metavar="FILE", help="Also write a page: tuned.html."
)
@options.base_option
@picturing.device_option
@options.pickle_option
@options.json_option
def command(expression: str, steps: int, base_model: str, page: str | None, as_json: bool, **given: Any) -> None:
    """Search the weights of a combination for the best pictures at a number of steps.

    Draws EXPRESSION with other weights from the same noise, scores every candidate against the many-step pictures of the
    expression as it is written, and prints the expression to use. The search is seeded: with --pictures, one that was
    interrupted goes on, and one with a larger budget takes the pictures that are there.

    \b
    Examples:
      lorahub tune "0.8*papercut + 1.0*lcm" --base-model sdxl/ --prompt "a fox" --prompt "a city at night"
      lorahub tune "papercut + lcm" --base-model sdxl/ --prompt "a fox" --vary papercut=0.5:1.2 --vary lcm=0.6:1.2
      lorahub tune "papercut + lcm" --base-model sdxl/ --prompt "a fox" --score style --per-block -o tuned.html
    """
    given["steps"] = (steps,)
    wish = picturing.wish(given)
    if wish is None:
        raise click.UsageError("say what to draw with --prompt")
    with output.progress("tuning") as advance:
        from lorahub.validate.page_tuning import write_tuning
        from lorahub.validate.tuning import tune

        tuning = tune(expression, base_model, wish, command=picturing.words(), progress=advance, **given)
        if page is not None:
            write_tuning(tuning, page)
    output.emit({"command": "tune", **tuning.to_json()}, _as_lines, as_json)


def _as_lines(result: dict[str, Any]) -> Iterator[str]:
    trials, found = result["trials"], result["best"]
    names = list(trials[0]["coefficients"])
    yield f"{result['subject']} at {result['steps']} steps, {result['drawn']} pictures"
    columns = [f"{name:>10}" for name in names]
    yield f"  {' '.join(columns)}  {result['score']} ({result['better']} is better)"
    for index in _chosen(result):
        trial = trials[index]
        weights = " ".join(f"{trial['coefficients'][name]:{max(len(name), 10)}.4g}" for name in names)
        mark = "  <- best" if index == found else "  <- as it is written" if index == 0 else ""
        yield f"{'*' if index == found else ' '} {weights}  {_score(trial)}{mark}"
    if len(trials) > _SHOWN:
        yield f"  and {len(trials) - _SHOWN} more, see --json or -o"
    yield _conclusion(result)
    blocks = "".join(f" --weight {shlex.quote(n)} {shlex.quote(p)} {w:.10g}" for n, p, w in result["weights"])
    yield f"lorahub combine {shlex.quote(result['expression'])}{blocks} -o tuned.safetensors"


def _chosen(result: dict[str, Any]) -> list[int]:
    """The best trials and the expression as it is written, in the order of the weights where there is one alone."""
    trials = result["trials"]
    worse = float("-inf") if result["better"] == "higher" else float("inf")
    by_score = sorted(
        range(len(trials)),
        key=lambda index: worse if trials[index]["value"] is None else trials[index]["value"],
        reverse=result["better"] == "higher",
    )
    kept = list(dict.fromkeys([0, *by_score]))[:_SHOWN]
    if len(trials[0]["coefficients"]) == 1:
        return sorted(kept, key=lambda index: tuple(trials[index]["coefficients"].values()))
    return sorted(kept, key=by_score.index)


def _score(trial: dict[str, Any]) -> str:
    if trial["value"] is None:
        return "-"
    bounds = "" if trial["low"] is None else f" [{trial['low']:.3g}, {trial['high']:.3g}]"
    return f"{trial['value']:.4g}{bounds}"


def _conclusion(result: dict[str, Any]) -> str:
    gain = result["gain"]
    if result["best"] == 0:
        return "nothing that was tried is better than the expression as it is written"
    if gain is None:
        return "better than the expression as it is written; by how much beyond chance is not known"
    said = f"better than as it is written by {gain['value']:.3g} [{gain['low']:.3g}, {gain['high']:.3g}]"
    return said if gain["low"] > 0 else f"{said}: that may be chance, more prompts or seeds would tell"
