"""lorahub verify"""

from __future__ import annotations

from typing import Any

import click

from lorahub.cli import options, output


@click.command(short_help="Check files against their recorded hashes.")
@click.argument("references", metavar="[REF]...", nargs=-1, type=options.Reference())
@click.option("--all", "everything", is_flag=True, help="Check every version, and the database.")
@click.option("--deep", is_flag=True, help="Also read the weights: NaN, Inf, layers that do nothing.")
@click.option("--repair", is_flag=True, help="Then mend what can be mended, like `lorahub repair --apply`.")
@options.json_option
def command(references: tuple[str, ...], everything: bool, deep: bool, repair: bool, as_json: bool) -> None:
    """Read the files of adapters again and compare them with the record; what is found is recorded.

    Exits with 7 when something is damaged, with 8 when files are missing or changed since they were scanned.

    \b
    Examples:
      lorahub verify papercut:2 --deep
      lorahub verify --all --json
    """
    if bool(references) == everything:
        raise click.UsageError("name what to check, or pass --all")
    with output.progress("verifying") as advance:
        from lorahub.workspace import checking, mending
        from lorahub.workspace.core import Workspace
        from lorahub.workspace.plain import to_plain

        def show(done: int, total: int) -> None:
            if advance is not None:
                advance(done // 10**6, total // 10**6, "MB")

        with Workspace.open() as workspace:
            found = checking.verify(workspace, references, deep=deep, progress=show)
            repairs = mending.repair(workspace, apply=True) if repair else None
    result = {"command": "verify", **to_plain(found), "repairs": to_plain(repairs)}
    output.emit(result, _as_lines, as_json)
    click.get_current_context().exit(7 if found.damaged else 8 if found.inconclusive else 0)


def _as_lines(result: dict[str, Any]) -> list[str]:
    lines = [f"database: {problem}" for problem in result["database"]]
    for each in result["checked"]:
        if each["status"] != "ok":
            lines += [f"{each['status']}: {each['reference']}: {message}" for message in each["messages"]]
    if result["repairs"]:
        lines += [f"repaired: {step['reference']}: {step['reason']}" for step in result["repairs"]["steps"]]
    fine = sum(each["status"] == "ok" for each in result["checked"])
    return [*lines, f"{fine} of {len(result['checked'])} versions are as recorded"]
