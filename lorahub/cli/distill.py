"""lorahub distill"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from lorahub.cli import options, output

_LOG_EVERY = 60.0
"""Seconds between the lines that tell a log file how far a run is."""


class _Runs(click.Group):
    """A group whose command `run` need not be named: `lorahub distill lcm.toml`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Runs, name="distill", short_help="Make an acceleration vector: latent consistency distillation.")
def command() -> None:
    """Distil a base model into a vector that lets it, and every style on it, draw in a few steps.

    CONFIG.toml holds the settings, and a table [data] that says what to train on. Modes: lora (LCM-LoRA, the
    default), tcd (trajectory consistency), cd (without guidance), lcf (fine-tune an LCM on your own images, no
    teacher), full (a whole LCM, and the vector to it), guided (a whole model that is told the guidance).

    \b
    Examples:
      lorahub distill plan --base sdxl --rank 64
      lorahub distill lcm.toml
      lorahub distill lcm.toml -s rank=32 -s data.folder=pictures
      lorahub distill lcm.toml --resume

    \b
    A small CONFIG.toml:
      base = "stable-diffusion-v1-5/stable-diffusion-v1-5"
      output = "lcm.safetensors"
      name = "lcm"
      precision = "fp16"
      [data]
      folder = "pictures"
    """


@command.command(name="run", short_help="Distil as a file of settings says.")
@click.argument("config", metavar="CONFIG.toml", type=click.Path(path_type=Path))
@click.option("-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting; repeatable.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint, where there is one.")
@options.json_option
def run(config: Path, overrides: tuple[str, ...], resume: bool, as_json: bool) -> None:
    """Distil as CONFIG.toml says; beside the output, a folder OUTPUT-run holds checkpoints, samples and logs.

    The file is loaded back and compared before success is reported; with `name` it is registered with how to run
    it. Several GPUs: `accelerate launch --no_python lorahub distill CONFIG.toml`.

    \b
    Example:
      lorahub distill run lcm.toml -s steps=2000 -s sample_every=200 -s 'sample_prompts=["a red fox"]'
    """
    with watching("distilling") as advance:
        from lorahub.distill.running import run

        done = run(config, overrides, resume=resume, progress=advance)
    if _is_main():
        settings = done.settings
        result = {
            "command": "distill",
            "mode": settings.mode,
            "output": None if done.path is None else str(done.path),
            "model": None if done.model is None else str(done.model),
            "registered": done.reference,
            "rank": settings.rank,
            "steps": settings.steps,
            "loss": done.loss,
            "layers": done.layers,
            "size": done.size,
        }
        output.emit(result, _run_lines, as_json)


def _run_lines(result: dict[str, Any]) -> list[str]:
    loss = "" if result["loss"] is None else f", loss {result['loss']:.4g}"
    lines = []
    if result["output"] is not None:
        size = output.human_size(result["size"])
        lines.append(f"{result['output']}: {result['layers']} layers, rank {result['rank']}, {size}")
        lines.append("  loaded back and compared: it answers as the trained network")
    if result["model"] is not None:
        lines.append(f"{result['model']}: the trained U-Net")
    if result["registered"] is not None:
        lines.append(f"  registered as {result['registered']}")
    return [*lines, f"  {result['mode']}, {result['steps']} steps{loss}"]


@command.command(name="plan", short_help="Print what a run would train and hold in memory.")
@click.argument("config", metavar="[CONFIG.toml]", required=False, type=click.Path(path_type=Path))
@click.option("--base", type=options.BaseName(), help="A listed base model; else the base of CONFIG.toml.")
@click.option("--rank", type=click.IntRange(1, 4096), help="Rank of the vector.")
@click.option("-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting; repeatable.")
@options.json_option
def plan(config: Path | None, base: str | None, rank: int | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print the layers, trainable parameters and memory of a run; nothing is loaded.

    \b
    Example:
      lorahub distill plan --base sd15 --rank 8 -s precision=bf16
    """
    from dataclasses import asdict

    from lorahub.distill import plan as planning
    from lorahub.distill.settings import Settings, table

    given = table(config, [*overrides, *([] if rank is None else [f"rank={rank}"])])
    given.pop("data", None)
    settings = Settings.of(given)
    made = planning.plan(base or settings.base, settings)
    result = {"command": "distill plan", "train": "model" if settings.whole else "adapter", **asdict(made)}
    output.emit({**result, "total": made.total}, _plan_lines, as_json)


def _plan_lines(result: dict[str, Any]) -> list[str]:
    width = max(len(target["name"]) for target in result["targets"])
    what = "the whole U-Net" if result["train"] == "model" else f"a LoRA of rank {result['rank']}"
    lines = [f"{result['base']}: {what}", "", "  targets"]
    for target in result["targets"]:
        lines.append(f"    {target['name']:{width}}  {target['layers']:4} layers  {target['parameters']:>13,}")
    lines += [
        f"  {result['layers']} layers, {result['parameters']:,} trainable parameters "
        f"({result['parameters'] / result['base_parameters']:.1%} of the U-Net's {result['base_parameters']:,})",
        f"  file of the vector: {output.human_size(result['file_size'])}",
        "",
        "  memory, besides activations, VAE and text encoders",
    ]
    lines += [f"    {what:18} {output.human_size(size):>8}" for what, size in result["memory"].items() if size]
    return [*lines, f"    {'in all':18} {output.human_size(result['total']):>8}"]


@contextmanager
def watching(label: str) -> Iterator[Callable[[int, int, str], None] | None]:
    """Progress of a long run: a moving line on a terminal, a line a minute in a log file, in the main process only."""
    if not _is_main():
        yield None
        return
    with output.progress(label) as advance:
        yield advance or _Log(label).advance


def _is_main() -> bool:
    """Whether this is the process of a launch that speaks to the user."""
    return os.environ.get("RANK", "0") == "0"


class _Log:
    def __init__(self, label: str) -> None:
        self._label = label
        self._next = time.monotonic() + _LOG_EVERY

    def advance(self, done: int, total: int, unit: str) -> None:
        if time.monotonic() >= self._next:
            click.echo(f"{self._label}: {done}/{total} {unit}", err=True)
            self._next = time.monotonic() + _LOG_EVERY
