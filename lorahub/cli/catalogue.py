"""What the commands of the catalogue share: the filters of list and search, references from standard input, results."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lorahub.cli import options, output, table

if TYPE_CHECKING:
    from registry.records import AdapterRecord, VersionRecord

_Command = TypeVar("_Command", bound=Callable[..., Any])

KINDS = ("acceleration", "style", "subject", "control", "slider", "merged", "other")
SORTS = ("name", "created", "seen", "size", "rank", "parameters")
LIMIT = 100
_HEADER = ("ADAPTER", "BASE", "KIND", "RANK", "SIZE", "TAGS", "ALIASES")


class Range(click.ParamType[tuple[float | None, float | None]]):
    """One number, or LO:HI of which either may be left out."""

    name = "range"

    def __init__(self, whole: bool) -> None:
        self._whole = whole

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        low, colon, high = str(value).partition(":")
        number = r"\d{1,9}" if self._whole else r"\d{1,9}(\.\d{1,9})?"
        if not all(re.fullmatch(number, end, re.ASCII) or (colon and not end) for end in (low, high or low)):
            self.fail(f"{value!r} is no range: expected N, LO:HI, LO: or :HI", param, ctx)
        kind: Callable[[str], float] = int if self._whole else float
        ends = [kind(end) if end else None for end in ((low, high) if colon else (low, low))]
        if ends == [None, None] or (None not in ends and ends[0] > ends[1]):  # type: ignore[operator]
            self.fail(f"{value!r} is an empty range: expected LO:HI with LO up to HI", param, ctx)
        return tuple(ends)


def filters(command: _Command) -> _Command:
    """The options that narrow and order a list."""
    sorts = click.Choice([sign + name for name in SORTS for sign in ("", "-")])
    for option in (
        options.json_option,
        click.option("-q", "--quiet", is_flag=True, help="Print references only, one a line."),
        click.option(
            "--limit",
            type=click.IntRange(min=0),
            default=LIMIT,
            show_default=True,
            metavar="N",
            help="Print at most N adapters; 0: all.",
        ),
        click.option("--sort", type=sorts, metavar="KEY", help=f"By {', '.join(SORTS)}; -KEY: descending."),
        click.option("--format", help="Only files in this spelling, such as kohya or peft."),
        click.option("--tag", help="Only adapters with this tag."),
        click.option("--kind", type=click.Choice(KINDS), help="Only adapters of this kind."),
        click.option("--rank", type=Range(True), metavar="LO:HI", help="Only adapters of these ranks: 16, 8:64, :32."),
        click.option("--base", type=options.BaseName(), metavar="BASE", help="Only adapters of this base model."),
    ):
        command = option(command)
    return command


def references_argument(command: _Command) -> _Command:
    """One or more references; `-` reads them from standard input."""
    return click.argument(
        "references", nargs=-1, required=True, metavar="REF...", type=options.Reference(), callback=_from_stdin
    )(command)


def also_option(command: _Command) -> _Command:
    return click.option(
        "--also", multiple=True, metavar="REF", type=options.Reference(), help="One more adapter; may be repeated."
    )(command)


def read(*references: str) -> tuple[str, ...]:
    """The references, with those on standard input in the place of `-`; raises UsageError if there are none."""
    if "-" not in references:
        return references
    given = [line.strip() for line in sys.stdin if line.strip()]
    found = tuple(one for reference in references for one in (given if reference == "-" else [reference]))
    if not found:
        raise click.UsageError("standard input holds no reference")
    return found


def dry_run_option(command: _Command) -> _Command:
    return click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")(command)


def listed(command: str, found: Sequence[AdapterRecord], limit: int, *, quiet: bool, as_json: bool) -> None:
    """Print a list of adapters, of which one more than `limit` was asked for, to know whether there are more."""
    from lorahub.workspace.plain import to_plain

    shown = found[:limit] if limit else found
    result: dict[str, Any] = {"command": command, "adapters": [], "more": len(shown) < len(found)}
    if as_json:
        result["adapters"] = [{**to_plain(each), "latest": version(each.latest)} for each in shown]
    if quiet and not as_json:
        for adapter in shown:
            click.echo(adapter.latest.reference)
    else:
        table.emit(result, _HEADER, _rows(shown), as_json)
    if result["more"]:
        click.echo(f"These are the first {limit}: `--limit 0` prints all.", err=True)
    elif not shown and sys.stdout.isatty():
        click.echo("No adapter found.", err=True)


def version(record: VersionRecord) -> dict[str, Any]:
    """A version for JSON: its fields, and the names and hashes that follow from them."""
    from lorahub.workspace.plain import to_plain

    return {"reference": record.reference, **to_plain(record), "rank": record.rank, "autov2": record.autov2}


def changed(
    command: str, records: Iterable[VersionRecord], done: str, *, dry_run: bool, as_json: bool, **more: Any
) -> None:
    """Print what a command did to versions: one line each, `done` and the reference."""
    verb = f"would have {done}" if dry_run else done
    result = {"command": command, "dry_run": dry_run, "versions": [version(record) for record in records], **more}
    output.emit(result, lambda found: [f"{verb} {each['reference']}" for each in found["versions"]], as_json)


def _rows(adapters: Sequence[AdapterRecord]) -> Iterator[Sequence[object]]:
    for adapter in adapters:
        latest = adapter.latest
        aliases = [f"{alias}={number}" for alias, number in adapter.aliases.items()]
        rank = latest.rank or None
        yield latest.reference, latest.base, latest.kind, rank, table.size(latest.size), latest.tags, aliases


def _from_stdin(context: click.Context, option: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    return read(*value)
