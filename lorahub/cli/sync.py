"""lorahub sync"""

from __future__ import annotations

from typing import Any

import click

from lorahub.cli import catalogue, options, output, pull, push

CONFLICT, PARTIAL = 6, 8


def _only_one(context: click.Context, option: click.Parameter, value: bool) -> bool:
    given = [name for name in ("ours", "theirs", "pr") if context.params.get(name)]
    if value and given:
        raise click.UsageError(f"--{given[0]} and {option.opts[0]} exclude each other", context)
    return value


@click.command(short_help="Carry changes between the registry and the Hugging Face Hub.")
@click.argument("names", nargs=-1, metavar="[NAME]...", type=options.Reference())
@click.option("--all", "everything", is_flag=True, help="All adapters that were ever pushed or pulled.")
@click.option("--ours", is_flag=True, callback=_only_one, help="Where both sides changed the same, ours wins.")
@click.option("--theirs", is_flag=True, callback=_only_one, help="Where both sides changed the same, the Hub's wins.")
@click.option("--pr", is_flag=True, callback=_only_one, help="Where both sides changed the same, propose ours there.")
@click.option("--delete", is_flag=True, help="Take adapters that are in the trash here off the Hub.")
@catalogue.dry_run_option
@options.json_option
def command(
    names: tuple[str, ...],
    everything: bool,
    ours: bool,
    theirs: bool,
    pr: bool,
    dry_run: bool,
    as_json: bool,
    delete: bool,
) -> None:
    """Sync adapters three-way: what one side changed since the last sync is carried over to the other.

    What is said of them (base, kind, licence, trigger words, run settings, tags) is merged field by field. Where both
    sides changed the same, nothing is done without --ours, --theirs or --pr, and it exits with 6. Nothing is deleted on
    the Hub without --delete, and nothing here. Exits with 8 when some of several could not be synced.

    \b
    Examples:
      lorahub sync --all --dry-run
      lorahub sync papercut --theirs
      lorahub sync papercut lcm --pr
    """
    from lorahub.sync.syncing import sync
    from lorahub.workspace.core import Workspace
    from lorahub.workspace.plain import to_plain

    prefer = "ours" if ours else "theirs" if theirs else "pr" if pr else None
    with Workspace.open() as workspace:
        done = sync(workspace, names, all=everything, prefer=prefer, delete=delete, dry_run=dry_run)
    output.emit({"command": "sync", "dry_run": dry_run, "adapters": to_plain(done)}, _lines, as_json)
    actions = {each.action for each in done}
    if "conflict" in actions:
        click.get_current_context().exit(CONFLICT)
    if "failed" in actions:
        click.get_current_context().exit(PARTIAL)


def _lines(result: dict[str, Any]) -> list[str]:
    found = []
    for each in result["adapters"]:
        found.append(_line(each, result["dry_run"]))
        found += [f"  {line}" for line in _details(each)]
    return found or ["no adapter was ever pushed or pulled"]


def _line(each: dict[str, Any], dry_run: bool) -> str:
    name, place, action = each["name"], each["state"]["repo"], each["action"]
    if action == "none":
        return f"{name}: the same as {place}"
    if action in ("conflict", "skipped", "failed"):
        return f"{name}: {action}: {each['reason']}"
    verbs = {
        "push": ("push to", "pushed to"),
        "pull": ("pull from", "pulled from"),
        "merge": ("merge what is said with", "merged what is said with"),
        "propose": ("propose to", "proposed to"),
        "delete": ("delete it from", "deleted from"),
    }
    return f"{name}: would {verbs[action][0]} {place}" if dry_run else f"{name}: {verbs[action][1]} {place}"


def _details(each: dict[str, Any]) -> list[str]:
    details = []
    if each["pulled"]:
        details += pull.lines({**each["pulled"], "dry_run": False})
    if each["pushed"]:
        details += push.lines({**each["pushed"], "dry_run": False})
    return details
