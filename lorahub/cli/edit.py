"""lorahub edit"""

from __future__ import annotations

from typing import Any

import click

from lorahub.cli import catalogue, options

_FIELDS = {"base": "base", "kind": "kind", "licence": "licence", "trigger": "trigger_words", "run": "run"}


@click.command(short_help="Say what is so, whatever was detected.")
@catalogue.references_argument
@click.option("--base", type=options.BaseName(), metavar="BASE", help="The base model.")
@click.option("--kind", type=click.Choice(catalogue.KINDS), help="What the adapter is for.")
@click.option("--licence", "--license", help="Its licence.")
@click.option("--note", "notes", help="Notes, in place of those that are there.")
@click.option(
    "--trigger", "triggers", multiple=True, metavar="WORD", help="A trigger word; repeat for more, in place of all."
)
@click.option("--scheduler", help="Run with this scheduler, a class of diffusers.")
@click.option("--steps", type=catalogue.Range(True), metavar="N|LO:HI", help="Run with so many steps.")
@click.option("--guidance", type=catalogue.Range(False), metavar="X|LO:HI", help="Run with this guidance scale.")
@click.option("--lora-scale", type=options.Weight(), metavar="X", help="Run with this weight of the adapter.")
@click.option(
    "--reset", multiple=True, type=click.Choice([*_FIELDS]), help="Go back to what was found; may be repeated."
)
@catalogue.dry_run_option
@options.json_option
def command(
    references: tuple[str, ...],
    triggers: tuple[str, ...],
    reset: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Override what was detected. Overrides are sticky: no scan undoes them, only --reset does.

    All versions named are changed or, on an error, none; - reads references from standard input.

    \b
    Examples:
      lorahub edit papercut --base sdxl --kind style --trigger papercut
      lorahub edit lcm-lora --scheduler LCMScheduler --steps 4 --guidance 1:2 --lora-scale 1
      lorahub edit papercut --reset base --reset trigger
    """
    from lorahub.workspace import editing
    from lorahub.workspace.core import Workspace

    run = _run(*(given.pop(name) for name in ("scheduler", "steps", "guidance", "lora_scale")))
    fields = [_FIELDS[name] for name in reset]
    with Workspace.open() as workspace:
        records = editing.edit(
            workspace, references, trigger_words=triggers or None, run=run, reset=fields, dry_run=dry_run, **given
        )
    catalogue.changed("edit", records, "edited", dry_run=dry_run, as_json=as_json)


def _run(scheduler: str | None, steps: Any, guidance: Any, lora_scale: float | None) -> dict[str, Any]:
    """The run settings that were given; a range of steps is to be chosen from, so its lower end is what to start with."""
    run: dict[str, Any] = {"scheduler": scheduler, "lora_scale": lora_scale}
    run = {name: value for name, value in run.items() if value is not None}
    if steps is not None:
        low, high = steps
        run |= {"steps": high if low is None else low, "steps_min": low, "steps_max": high}
    if guidance is not None:
        run |= {"guidance_min": guidance[0], "guidance_max": guidance[1]}
    return run
