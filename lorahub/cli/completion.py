"""lorahub completion"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command(short_help="Print a shell completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script that makes a shell complete lorahub's commands, options and files.

    \b
    Examples:
      lorahub completion bash >> ~/.bashrc
      lorahub completion zsh >> ~/.zshrc
      lorahub completion fish > ~/.config/fish/completions/lorahub.fish
    """
    from lorahub.cli import main

    kind = get_completion_class(shell)
    assert kind is not None  # the choice above allows only shells that click knows
    click.echo(kind(main, {}, "lorahub", "_LORAHUB_COMPLETE").source())
