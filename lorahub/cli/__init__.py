"""The command line. One file per command, named after it, imported when it is called.

At the top every file here imports only click and its neighbours, so `--help` and usage errors are instant.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

COMMANDS = {
    "combine": "combine",
    "resize": "resize",
    "convert": "convert",
    "compare": "compare",
    "inspect": "inspect_",
    "bases": "bases",
    "formats": "formats",
    "completion": "completion",
}
"""command -> module in this package that holds it as `command`."""

INTERRUPTED = 130


class Commands(click.Group):
    """Commands are found in a table; errors become one line and the exit code of their class."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"lorahub.cli.{COMMANDS[name]}").command
        return command

    def invoke(self, context: click.Context) -> Any:
        from lorahub.errors import LorahubError

        try:
            return super().invoke(context)
        except (LorahubError, OSError) as error:
            if isinstance(error, BrokenPipeError):  # the reader of our output left: that is no error of ours
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                context.exit(0)
            if context.params.get("debug"):
                raise
            click.echo(f"Error: {printable(str(error))}", err=True)
            context.exit(getattr(error, "exit_code", 1))
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            context.exit(INTERRUPTED)


def printable(text: str) -> str:
    """The text in one line without control characters: names and metadata come from strangers."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="lorahub-toolkit", prog_name="lorahub")
@click.option("--debug", is_flag=True, help="Show tracebacks instead of one-line errors.")
def main(debug: bool) -> None:
    """LoRA adapters of diffusion models as vectors: combine, resize, convert, compare.

    An ADAPTER is a file (.safetensors), a PEFT or diffusers folder, or a Hub repository
    (user/repo[@revision][:file]).

    \b
    Exit codes: 0 ok, 1 failed, 2 usage, 3 auth, 4 not found, 5 network (retry), 6 conflict,
    7 verification failed, 8 partial or inconclusive, 130 interrupted.
    """
