"""lorahub pull"""

from __future__ import annotations

from typing import Any

import click

from lorahub.cli import catalogue, options, output


@click.command(short_help="Bring an adapter from the Hugging Face Hub into the registry.")
@click.argument("repository", metavar="USER/REPO[@REVISION]")
@click.option("--file", metavar="PATH", help="The file in the repository, when it holds several adapters.")
@click.option("--name", type=options.Name(), help="What to call it here, instead of as the repository calls it.")
@click.option(
    "--base", type=options.BaseName(), metavar="BASE", help="Refuse it, before the download, if it is for another base."
)
@click.option("--rebuild", is_flag=True, help="Make a merged adapter again from its parents, and prove it is the same.")
@click.option("--force", is_flag=True, help="Also when changes here were not pushed; they stay as older versions.")
@catalogue.dry_run_option
@options.json_option
def command(repository: str, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Pull one adapter: its header is read first, then the file, whose hash must be the one the Hub announces.

    Works with any LoRA repository: one of several files (--file), PEFT folders (which become one file), and those that
    `lorahub push` made, whose lineage and record come along. A branch is followed by `lorahub status` and `sync`, a tag
    or commit is taken once. A stored file is not downloaded again.

    \b
    Examples:
      lorahub pull latent-consistency/lcm-lora-sdxl --base sdxl
      lorahub pull user/styles@v2 --file papercut.safetensors --name papercut
      lorahub pull user/fast-papercut --rebuild
    """
    from lorahub.sync.pulling import pull
    from lorahub.workspace.core import Workspace
    from lorahub.workspace.plain import to_plain

    with Workspace.open() as workspace:
        done = pull(workspace, repository, dry_run=dry_run, **given)
    output.emit({"command": "pull", "dry_run": dry_run, **to_plain(done)}, lines, as_json)


def lines(result: dict[str, Any]) -> list[str]:
    """What a pull did, or would do, for people."""
    source = f"{result['repo']}@{result['commit'][:12]}:{result['path']}"
    base = f", {result['base']}" if result["base"] else ""
    size = output.human_size(result["size"])
    if result["dry_run"]:
        first = f"would pull {source} ({size}{base}) as {result['reference']}"
    elif result["outcome"] == "known":
        first = f"known: {result['reference']} is {source}"
    else:
        how = "made again from its parents" if result["rebuilt"] else size
        first = f"pulled {result['reference']} from {source} ({how}{base})"
    if not result["dry_run"] and result["branch"] is None:
        first += ", pinned"
    proof = ["  identical to what the Hub has, sha256 verified"] if result["rebuilt"] and not result["dry_run"] else []
    return [first, *proof, *(f"  note: {note}" for note in result["notes"])]
