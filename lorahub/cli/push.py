"""lorahub push"""

from __future__ import annotations

from typing import Any

import click

from lorahub.cli import catalogue, options, output


@click.command(short_help="Bring an adapter to the Hugging Face Hub.")
@click.argument("adapter", metavar="NAME", type=options.Reference())
@click.option(
    "--to", metavar="USER/REPO", help="The repository, made if it does not exist; later pushes need it no more."
)
@click.option("--private", is_flag=True, help="Make the repository private, if it is to be made.")
@click.option("--revision", metavar="BRANCH", help="Push to this branch, begun if it does not exist.")
@click.option("--pr", is_flag=True, help="Propose the change in a pull request.")
@click.option("--tag", metavar="TAG", help="Put this tag on the commit, such as v3.")
@click.option("--force", is_flag=True, help="Replace what others changed there since the last sync, the card too.")
@catalogue.dry_run_option
@options.json_option
def command(adapter: str, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Push a version in one commit: its file, a model card (README.md), and lorahub.json with record, lineage and hashes.

    Only what is different is sent. A card that somebody edited there is kept. Your notes stay here. The token is that
    of `hf auth login`, or HF_TOKEN. Exits with 6 when others changed the adapter there: see `lorahub sync`.

    \b
    Examples:
      lorahub push papercut --to user/papercut-lora --private
      lorahub push papercut --tag v2
      lorahub push papercut:3 --pr --dry-run
    """
    from lorahub.sync.pushing import push
    from lorahub.workspace.core import Workspace
    from lorahub.workspace.plain import to_plain

    with Workspace.open() as workspace:
        done = push(workspace, adapter, dry_run=dry_run, **given)
    output.emit({"command": "push", "dry_run": dry_run, **to_plain(done)}, lines, as_json)


def lines(result: dict[str, Any]) -> list[str]:
    """What a push did, or would do, for people."""
    place = result["repo"] if result["branch"] == "main" else f"{result['repo']}@{result['branch']}"
    if result["outcome"] == "unchanged":
        first = f"{result['reference']}: {place} has it already"
    elif result["dry_run"]:
        first = f"would send {', '.join(result['sent'])} of {result['reference']} to {place}"
    elif result["pull_request"]:
        first = f"proposed {result['reference']} to {place}: {result['pull_request']}"
    else:
        new = " (new)" if result["created"] else ""
        first = (
            f"pushed {result['reference']} to {place}{new}, commit {result['commit'][:12]}: {', '.join(result['sent'])}"
        )
    kept = [f"  {path} was edited there and is kept (--force replaces it)" for path in result["kept"]]
    tag = [f"  tagged {result['tag']}"] if result["tag"] and not result["dry_run"] else []
    notes = [] if result["outcome"] == "unchanged" else [f"  note: {note}" for note in result["notes"]]
    return [first, *kept, *tag, *notes]
