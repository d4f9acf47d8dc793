"""lorahub studio"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from lorahub.cli import options, output


@click.group(name="studio", short_help="See style + acceleration at work on a tiny model that ships with lorahub.")
def command() -> None:
    """See style + acceleration at work on a tiny Stable Diffusion that ships with lorahub.

    It draws one shape in one colour on one ground, 32 pixels wide: "red star on teal".

    \b
    Examples:
      lorahub studio show -o studio-output
      lorahub studio show -o stars --style stripes --prompt "red star on teal"
      lorahub studio build --output my-studio
    """


@command.command(name="show")
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path),
    default=Path("studio-output"),
    show_default=True,
    help="Folder for the picture, the page, and the registry that is made.",
)
@click.option("--style", default="shadow", show_default=True, metavar="STYLE", help="Which style to draw in.")
@click.option("--prompt", metavar="TEXT", help="Draw this, instead of random prompts: COLOUR SHAPE on GROUND.")
@click.option(
    "--pictures", type=click.IntRange(min=6), default=64, show_default=True, help="Pictures to score each cell on."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of prompts and noise.")
@click.option("--force", is_flag=True, help="Replace the demonstration that is in the folder.")
@options.json_option
def show(folder: Path, as_json: bool, **given: Any) -> None:
    """Add a style and an acceleration vector in a fresh registry, and draw with 1, 2, 4, 8 and 50 steps.

    The rows are the base, the style, and 0.8*style + 1.0*lcm at half its rank, all with the same prompts and noise; guidance
    is used without the acceleration vector, as it contains its effect.
    Leaves a picture and a self-contained page, and prints the scores. Takes a minute or two.

    \b
    Examples:
      lorahub studio show -o studio-output
      lorahub studio show -o stars --style stripes --prompt "red star on teal" --json
    """
    with output.progress("drawing") as advance:
        from lorahub.studio.showing import show as shown
        from lorahub.workspace.plain import to_plain

        found = to_plain(shown(folder, progress=advance, **given))
    output.emit({"command": "studio show", **found}, _show_lines, as_json)


@command.command(name="build")
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path),
    default=Path("studio"),
    show_default=True,
    help="Folder for the pipeline, the vectors and the scorer.",
)
@click.option("--resume", is_flag=True, help="Go on with the interrupted build in the folder.")
@options.json_option
def build(folder: Path, resume: bool, as_json: bool) -> None:
    """Make the tiny model and its vectors again from nothing: two hours on one core.

    Every stage is seeded. An interrupted build goes on from its last checkpoint with --resume.

    \b
    Examples:
      lorahub studio build --output my-studio
      lorahub studio build --output my-studio --resume
    """
    with output.progress("building") as advance:
        from lorahub.studio.building import build as built

        def told(stage: str, done: int, steps: int, loss: float) -> None:
            if advance is not None:
                advance(done, steps, f"steps of {stage}, loss {loss:.4f},")

        place = built(folder, resume=resume, progress=told)
    output.emit({"command": "studio build", "output": str(place)}, lambda result: [result["output"]], as_json)


def _show_lines(result: dict[str, Any]) -> Iterator[str]:
    found, made = result["compatibility"], result["combined"]["made"]
    first, second = found["references"]
    yield f"{first} and {second}: can be added: {'yes' if found['can'] else 'no'}, should be: {found['should']}"
    yield from (f"  {finding['severity']}: {finding['message']}" for finding in found["findings"])
    yield from (
        f"  cosine {pair['cosine']:.4f}, norms {pair['norms'][0]:.3g} and {pair['norms'][1]:.3g}"
        for pair in found["pairs"]
    )
    yield f"{result['combined']['reference']}: {made['expression']}"
    yield f"  rank {made['ranks'][1]} (was {made['rank_before']}), {made['relative_error']:.1%} of the norm left out"
    yield ""
    yield f"{'':18}{'sampler':8}{'guidance':>8}{'steps':>7}  {'attributes':>10}  {'style':>5}  {'distance to the style at 50':>27}"
    for cell in result["cells"]:
        scores = f"{cell['attributes']:10.0%}  {cell['style']:5.0%}  {cell['distance']:27.2f}"
        yield f"{cell['row']:18}{cell['sampler']:8}{cell['guidance']:8g}{cell['steps']:7}  {scores}"
    yield ""
    yield result["picture"]
    yield result["page"]
