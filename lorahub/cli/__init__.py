"""The command line. One file per command, named after it, imported when it is called.

At the top every file here imports only click and its neighbours, so `--help` and usage errors are instant.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import Any

import click

from lorahub.cli import signals

COMMANDS = {
    "combine": "combine",
    "resize": "resize",
    "extract": "extract",
    "convert": "convert",
    "bake": "bake",
    "compare": "compare",
    "inspect": "inspect_",
    "distill": "distill",
    "bases": "bases",
    "formats": "formats",
    "methods": "methods",
    "list": "list",
    "search": "search",
    "show": "show",
    "edit": "edit",
    "tag": "tag",
    "untag": "untag",
    "alias": "alias",
    "rename": "rename",
    "remove": "remove",
    "restore": "restore",
    "export": "export",
    "import": "import_",
    "backup": "backup",
    "config": "config",
    "completion": "completion",
    "add": "add",
    "scan": "scan",
    "validate": "validate",
    "tune": "tune",
    "verify": "verify",
    "duplicates": "duplicates",
    "missing": "missing",
    "repair": "repair",
    "gc": "gc",
    "db": "db",
    "doctor": "doctor",
    "studio": "studio",
    "compatible": "compatible",
    "similar": "similar",
    "lineage": "lineage",
    "rebuild": "rebuild",
    "push": "push",
    "pull": "pull",
    "status": "status",
    "sync": "sync",
    "train-style": "train_style",
}
"""command -> module in this package that holds it as `command`."""


class Commands(click.Group):
    """Commands are found in a table; errors become one line and the exit code of their class."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [*COMMANDS]  # once `lorahub list` is imported, `list` is that module here

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"lorahub.cli.{COMMANDS[name]}").command
        return command

    def main(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that has no Δ gets \u0394, not an exception
            sys.stdout.reconfigure(errors="backslashreplace")
        if "_LORAHUB_COMPLETE" in os.environ:
            importlib.import_module("lorahub.cli.shell")
        with signals.handled():
            return super().main(*args, **kwargs)

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:  # the reader of our output left: that is no error of ours
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            context.exit(0)
        except (KeyboardInterrupt, Exception) as error:
            if isinstance(error, KeyboardInterrupt) or signals.received:
                click.echo("Interrupted.", err=True)
                context.exit(signals.INTERRUPTED)
            _report(error, debug=context.params["debug"])
            context.exit(getattr(error, "exit_code", 1))


def _report(error: Exception, *, debug: bool) -> None:
    from lorahub.cli.output import one_line
    from lorahub.errors import LorahubError

    if debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, LorahubError):
        message = str(error)
    elif isinstance(error, OSError):
        message = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    elif isinstance(error, MemoryError):
        message = "not enough memory"
    else:
        message = f"unexpected {type(error).__name__}: {error} (`lorahub --debug ...` shows where; please report it)"
    click.echo(f"Error: {one_line(message)}", err=True)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="lorahub-toolkit", prog_name="lorahub")
@click.option("--debug", is_flag=True, help="Show tracebacks instead of one-line errors.")
def main(debug: bool) -> None:
    """LoRA adapters of diffusion models as vectors: combine, resize, convert, compare.

    An ADAPTER is a file (.safetensors), a PEFT or diffusers folder, or a Hub repository
    (user/repo[@revision][:file]).

    \b
    Example:
      lorahub combine "0.8*style.safetensors + 1.0*user/lcm-lora" -o fast-style.safetensors --rank 64

    \b
    Exit codes: 0 ok, 1 failed, 2 usage, 3 auth, 4 not found, 5 network (retry), 6 conflict,
    7 verification failed, 8 partial or inconclusive, 130 interrupted.
    """
