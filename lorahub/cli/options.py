"""Options that several commands share, checked as far as click and names can tell, before anything heavy is imported."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

_Command = TypeVar("_Command", bound=Callable[..., Any])

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
_RULES = {"rank": "--rank", "energy": "--energy", "relative": "--relative", "max_size": "--max-size"}
_NEGATED = re.compile(r"-(\s|[\d.]+\s*\*|[^-].*\s[+-]\s)")
_PICKLES = (".pt", ".pth", ".bin", ".ckpt")


class Reference(click.ParamType[str]):
    """An adapter by path or name; the shell completes both, and in bash paths only where no name fits."""

    name = "adapter"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from lorahub.workspace.completing import complete

        names = [] if incomplete.startswith((".", "~")) or "/" in incomplete else complete(incomplete)
        return [CompletionItem(incomplete, type="file"), *map(CompletionItem, names)]


class Expression(click.ParamType[str]):
    """Weighted adapters, `0.8*style + 1.0*lcm`; only the grammar is checked here."""

    name = "expression"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from lorahub.expression import parse

        parse(value)
        return str(value)


class ExpressionCommand(click.Command):
    """Takes an argument such as `-1*style` or `-style + lcm` for the expression it is, not for options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [f" {word}" if _NEGATED.match(word) else word for word in args])


class BaseName(click.ParamType[str]):
    """A listed base model, in any of its usual spellings; the shell completes the names."""

    name = "base"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from lorahub import bases

        return str(value) if value.startswith("unlisted") else bases.get(value).name

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from lorahub import bases

        return [CompletionItem(name) for name in bases.names() if name.startswith(incomplete)]


class Device(click.ParamType[str]):
    """cpu, or an accelerator that torch finds on this machine."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", value):
            self.fail(f"{value!r} is no device: expected cpu, cuda or cuda:N", param, ctx)
        if value != "cpu":
            import torch

            count = torch.cuda.device_count()
            if int(value.partition(":")[2] or 0) >= count:
                self.fail(f"torch finds {count} CUDA devices here, so there is no {value}", param, ctx)
        return str(value)


class Name(click.ParamType[str]):
    """What an adapter of the registry may be called."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from registry.errors import InvalidError
        from registry.names import adapter_name

        try:
            return adapter_name(str(value))
        except InvalidError as error:
            self.fail(str(error), param, ctx)


class Weight(click.ParamType[float]):
    """A finite number."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(click.FLOAT.convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class Setting(click.ParamType[tuple[str, str]]):
    """`name=value`, checked where it is known which settings there are."""

    name = "setting"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, text = str(value).partition("=")
        if not (name.strip() and equals):
            self.fail(f"{value!r} is no setting: expected NAME=VALUE", param, ctx)
        return name.strip(), text.strip()


class Size(click.ParamType[int]):
    """A number of bytes: 800000, 100MB (10^6), 64MiB (2^20)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([KMG]?I?)B?\s*", str(value), re.IGNORECASE)
        if not match or match[2].upper() not in _UNITS:
            self.fail(f"{value!r} is not a size: write bytes, or a number with KB, MB, GB, KiB, MiB or GiB", param, ctx)
        return int(float(match[1]) * _UNITS[match[2].upper()])


def json_option(command: _Command) -> _Command:
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)


def base_option(command: _Command) -> _Command:
    return click.option(
        "--base", type=BaseName(), metavar="BASE", help="The base model, when detection should not decide."
    )(command)


def pickle_option(command: _Command) -> _Command:
    return click.option("--allow-pickle", is_flag=True, help="Also read .pt and .bin files (with weights_only=True).")(
        command
    )


def device_option(command: _Command) -> _Command:
    return click.option(
        "--device", type=Device(), default="cpu", show_default=True, metavar="cpu|cuda", help="Where to compute."
    )(command)


def format_option(flag: str, help: str, *, required: bool = False) -> Callable[[_Command], _Command]:
    """The spelling of the output; eager, because the name of the output is checked against it."""
    formats = click.Choice(["kohya", "diffusers", "peft"])
    return click.option(flag, "format", type=formats, required=required, is_eager=True, help=help)


def rank_options(command: _Command) -> _Command:
    """The four rank rules; they exclude each other."""
    share, error = click.FloatRange(0, 1, min_open=True), click.FloatRange(0, 1, max_open=True)
    for name, type, help in (
        ("max_size", Size(), "Keep the file within this size: 100MB, 64MiB."),
        ("relative", error, "Allow this relative error in each layer."),
        ("energy", share, "Keep this share of each layer's squared norm."),
        ("rank", click.IntRange(min=1), "Keep this rank in every layer."),
    ):
        metavar = {"energy": "SHARE", "relative": "ERROR", "rank": "N"}.get(name)
        command = click.option(_RULES[name], type=type, metavar=metavar, help=help, callback=_only_rule)(command)
    return command


def settings_option(help: str) -> Callable[[_Command], _Command]:
    """`-s NAME=VALUE`, repeated; a dictionary, in which no name comes twice."""
    return click.option(
        "-s",
        "--setting",
        "settings",
        type=Setting(),
        multiple=True,
        metavar="NAME=VALUE",
        callback=_each_once,
        help=help,
    )


def _each_once(context: click.Context, option: click.Parameter, value: tuple[tuple[str, str], ...]) -> dict[str, str]:
    settings = dict(value)
    if len(settings) < len(value):
        twice = next(name for name, _ in value if sum(other == name for other, _ in value) > 1)
        raise click.BadParameter(f"{twice} is given twice", context, option)
    return settings


def rule_is_given(given: dict[str, object]) -> bool:
    return any(given[name] is not None for name in _RULES)


def _only_rule(context: click.Context, option: click.Parameter, value: object) -> object:
    others = [flag for name, flag in _RULES.items() if context.params.get(name) is not None]
    if value is not None and others:
        raise click.UsageError(f"{others[0]} and {option.opts[0]} exclude each other: give one rank rule", context)
    return value


def output_options(command: _Command) -> _Command:
    for option in reversed(
        [
            click.option(
                "-o",
                "--output",
                type=click.Path(),
                callback=_readable_later,
                help="File to write (a folder for peft); with --name it may stay away, and only the store has it.",
            ),
            click.option(
                "--name", type=Name(), is_eager=True, help="Register the result under this name, with its lineage."
            ),
            click.option("--tag", "tags", multiple=True, metavar="TAG", help="Put this tag on it; needs --name."),
            click.option("--dtype", type=click.Choice(["fp16", "bf16", "fp32"]), help="Of the weights written."),
            click.option(
                "--drop", multiple=True, type=click.Choice(["offsets", "embeddings"]), help="Leave these out."
            ),
            click.option(
                "--force",
                is_flag=True,
                help="Overwrite the output if it exists; with combine, also despite the checks.",
            ),
        ]
    ):
        command = option(command)
    return command


def _readable_later(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Refuse names under which readers would take the output for something else; without --name there must be one."""
    if value is None:
        if context.params.get("name") is None:
            raise click.MissingParameter(ctx=context, param=option)
        return None
    suffix = Path(value).suffix.lower()
    if not Path(value).name:
        raise click.BadParameter(f"{value!r} names no file", context, option)
    if suffix in _PICKLES:
        raise click.BadParameter(f"{suffix} names a pickle; what is written is .safetensors", context, option)
    if suffix == ".safetensors" and context.params.get("format") == "peft":
        raise click.BadParameter("peft is written as a folder: give a name without .safetensors", context, option)
    return value
