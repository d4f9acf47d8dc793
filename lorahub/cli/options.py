"""Options that several commands share, and how their results reach the terminal."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

SCHEMA = 1
"""Version of the shape of every --json result; it rises when a field changes its meaning or goes away."""

_Command = TypeVar("_Command", bound=Callable[..., Any])

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


class Reference(click.ParamType[str]):
    """An adapter by path or name; the shell completes paths."""

    name = "adapter"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


class Size(click.ParamType[int]):
    """A number of bytes: 800000, 100MB (10^6), 64MiB (2^20)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*([\d.]+)\s*([KMG]?I?)B?\s*", str(value), re.IGNORECASE)
        try:
            return int(float(match[1]) * _UNITS[match[2].upper()])  # type: ignore[index]
        except (TypeError, KeyError, ValueError):
            self.fail(f"{value!r} is not a size: write bytes, or a number with KB, MB, GB, KiB, MiB or GiB", param, ctx)


def json_option(command: _Command) -> _Command:
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)


def base_option(command: _Command) -> _Command:
    return click.option("--base", metavar="BASE", help="The base model, when detection should not decide.")(command)


def pickle_option(command: _Command) -> _Command:
    return click.option("--allow-pickle", is_flag=True, help="Also read .pt and .bin files (with weights_only=True).")(
        command
    )


def device_option(command: _Command) -> _Command:
    return click.option("--device", default="cpu", show_default=True, metavar="cpu|cuda", help="Where to compute.")(
        command
    )


def rank_options(command: _Command) -> _Command:
    """The four rank rules; they exclude each other."""
    for option in reversed(
        [
            click.option("--rank", type=click.IntRange(min=1), help="Keep this rank in every layer."),
            click.option("--energy", type=float, metavar="SHARE", help="Keep this share of each layer's squared norm."),
            click.option("--relative", type=float, metavar="ERROR", help="Allow this relative error in each layer."),
            click.option("--max-size", type=Size(), help="Keep the file within this size: 100MB, 64MiB."),
        ]
    ):
        command = option(command)
    return command


def output_options(command: _Command) -> _Command:
    for option in reversed(
        [
            click.option("-o", "--output", required=True, type=click.Path(), help="File to write (a folder for peft)."),
            click.option("--dtype", type=click.Choice(["fp16", "bf16", "fp32"]), help="Of the weights written."),
            click.option(
                "--drop", multiple=True, type=click.Choice(["offsets", "embeddings"]), help="Leave these out."
            ),
            click.option("--force", is_flag=True, help="Overwrite the output if it exists."),
        ]
    ):
        command = option(command)
    return command


def emit(result: dict[str, Any], text: Callable[[dict[str, Any]], str], as_json: bool) -> None:
    """The result on standard output: JSON with real numbers, or the text made from it."""
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, **result}, indent=2, ensure_ascii=False))
    else:
        click.echo(text(result))


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None] | None]:
    """A one-line counter on standard error, from the second second on, and only when that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    start = time.monotonic()
    drawn = False

    def advance(done: int, total: int) -> None:
        nonlocal drawn
        elapsed = time.monotonic() - start
        if elapsed > 1:
            drawn = True
            left = elapsed / done * (total - done)
            click.echo(f"\r{label}: {done}/{total} layers, {left:.0f} s left \x1b[K", nl=False, err=True)

    try:
        yield advance
    finally:
        if drawn:
            click.echo("\r\x1b[K", nl=False, err=True)


def human_size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
