"""What the commands that draw have in common: their options, and the wish that these make."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lorahub.cli import options

if TYPE_CHECKING:
    from lorahub.validate.picturing import Pictures

_Command = TypeVar("_Command", bound=Callable[..., Any])
_WISH = (
    "prompts", "negative", "seeds", "steps", "reference_steps", "guidance", "samplers", "sweep", "height", "width", "folder",
    "feature_model", "clip_model", "lpips_model",
)  # fmt: skip


class Remembering(options.ExpressionCommand):
    """Keeps its words, so that a report can name the command that gives it again."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[__name__] = shlex.join(["lorahub", ctx.info_name or "", *args])
        return super().parse_args(ctx, args)


def words() -> str:
    """The command line of the command that runs, as the shell takes it."""
    return str(click.get_current_context().meta[__name__])


class Numbers(click.ParamType[tuple[int, ...]]):
    """Whole numbers between commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of whole numbers: expected one like 1,2,4,8", param, ctx)


class _Device(options.Device):
    """Also auto."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return "auto" if value == "auto" else super().convert(value, param, ctx)


def device_option(command: _Command) -> _Command:
    return click.option(
        "--device", type=_Device(), default="auto", show_default=True, metavar="auto|cpu|cuda", help="Where to compute."
    )(command)


def accelerator_option(command: _Command) -> _Command:
    return click.option(
        "--accelerator",
        "accelerators",
        multiple=True,
        metavar="NAME=FAMILY",
        help="This operand accelerates, and is drawn as lcm, tcd, hyper-sd and so on are.",
    )(command)


def base_model_options(*, required: bool) -> Callable[[_Command], _Command]:
    """The base model that is drawn with, and what a single file needs besides."""

    def decorate(command: _Command) -> _Command:
        config = click.option(
            "--base-config",
            type=click.Path(exists=True, file_okay=False),
            metavar="DIR",
            help="Folder with the diffusers configuration of a base model that is a single file. [asked of the Hub]",
        )(command)
        return click.option(
            "--base-model",
            required=required,
            metavar="PATH|HUB-ID",
            help="Put it on this and draw: a diffusers folder, a single file or a repository.",
        )(config)

    return decorate


def picture_options(command: _Command) -> _Command:
    """What is drawn; all but the first need it."""
    for option in reversed(
        [
            click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="Draw this; may be repeated."),
            click.option("--negative", metavar="TEXT", help="What the base's own samplers should avoid."),
            click.option("--seeds", type=Numbers(), metavar="N,N...", help="Each prompt once per seed. [0,1,2,3]"),
            click.option("--reference-steps", type=click.IntRange(2), help="Of the many-step pictures. [25]"),
            click.option(
                "--guidance",
                type=click.FloatRange(0),
                metavar="SCALE",
                help="Of the base's samplers, those of the many-step pictures among them. [the pipeline's own]",
            ),
            click.option(
                "--sampler", "samplers", multiple=True, metavar="NAME", help="ddim, dpmsolver++, unipc, euler. [all]"
            ),
            click.option("--height", type=click.IntRange(8), help="Of a picture. [the base's]"),
            click.option("--width", type=click.IntRange(8), help="Of a picture. [the base's]"),
            click.option(
                "--pictures",
                "--resume",
                "folder",
                type=click.Path(file_okay=False, path_type=Path),
                metavar="DIR",
                help="Keep pictures here, and take those that lie here from an interrupted run. [they are not kept]",
            ),
            click.option(
                "--feature-model",
                type=click.Path(exists=True),
                metavar="FILE",
                help="Network for the scores features and frechet.",
            ),
            click.option(
                "--clip-model", type=click.Path(exists=True), metavar="DIR", help="Folder of a CLIP for the score clip."
            ),
            click.option(
                "--lpips-model",
                type=click.Path(exists=True, dir_okay=False),
                metavar="FILE",
                help="torchvision's weights of AlexNet for the score lpips. [torch's cache]",
            ),
        ]
    ):
        command = option(command)
    return command


def wish(given: dict[str, Any]) -> Pictures | None:
    """Takes the options of pictures out of what was given; None where nothing is to be drawn."""
    said = {name: value for name in _WISH if (value := given.pop(name, None)) not in (None, ())}
    if not said.get("prompts"):
        if said:
            raise click.UsageError("say what to draw with --prompt")
        return None
    from lorahub.validate.picturing import Pictures

    return Pictures(**said)
