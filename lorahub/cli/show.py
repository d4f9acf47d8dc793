"""lorahub show"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lorahub.cli import catalogue, options, output

if TYPE_CHECKING:
    from lorahub.workspace.showing import Shown

Fields = dict[str, Any]


@click.command(short_help="Print everything that is recorded of an adapter.")
@click.argument("reference", metavar="REF", type=options.Reference())
@click.option("--why", is_flag=True, help="Print how the base model was recognised.")
@click.option("--metadata", is_flag=True, help="Print the metadata of the file.")
@options.json_option
def command(reference: str, why: bool, metadata: bool, as_json: bool) -> None:
    """Print everything that is recorded of a version; of NAME alone, of its newest.

    What a person said (edit) stands in the place of what was found, which is named beside it. Of an accelerator,
    the last lines are Python to paste: the scheduler, steps, guidance and weight it is made for.

    \b
    Examples:
      lorahub show papercut
      lorahub show lcm-lora@prod --why
      lorahub show sha256:5f3a9c --json
    """
    from lorahub.workspace import showing
    from lorahub.workspace.core import Workspace

    with Workspace.open() as workspace:
        shown = showing.show(workspace, reference, metadata=metadata)
    output.emit({"command": "show", **_as_result(shown)}, lambda result: _lines(result, why), as_json)


def _as_result(shown: Shown) -> Fields:
    from lorahub.workspace.plain import to_plain

    result: Fields = to_plain(shown)
    return {**result, "record": catalogue.version(shown.record)}


def _lines(result: Fields, why: bool) -> list[str]:
    record = result["record"]
    blocks = [
        [f"{record['reference']}: {record['kind']}, {record['format']}, {output.human_size(record['size'])}"],
        _base(record, why),
        _vector(result),
        _said(record),
        _names(result),
        _files(result),
        _lineage(result),
        [f"  {each['severity']}: {each['check']}: {each['message']}" for each in result["validations"]],
        [f"  {key}: {value}" for key, value in (result["metadata"] or {}).items()],
        ["  to run it:", *(f"    {line}" for line in result["snippet"])] if result["snippet"] else [],
    ]
    return [line for block in blocks for line in block]


def _base(record: Fields, why: bool) -> list[str]:
    said = "base" in record["overrides"]
    detected, declared = record["base_detected"], record["base_declared"]
    notes = [f"detected {detected or 'nothing'}"] if said else [] if detected else ["not detected"]
    if declared not in (None, record["base"]):
        notes.append(f"the metadata says {declared}")
    lines = [f"  base {record['base'] or 'not known'}" + (f" ({'; '.join(notes)})" if notes else "")]
    return lines + ([f"    {sentence}" for sentence in record["evidence"]] if why else [])


def _vector(result: Fields) -> list[str]:
    record = result["record"]
    lines = []
    for component, layers in record["layers"].items():
        ranks = record["ranks"].get(component, [])
        span = f", rank {min(ranks)}" + (f" to {max(ranks)}" if max(ranks) > min(ranks) else "") if ranks else ""
        lines.append(f"  {component}: {layers} layers{span}")
    facts = {"parameters": record["parameters"], "dtype": record["dtype"], "scale": record["scale"]}
    facts["norm"] = None if result["norm"] is None else f"{result['norm']:.6g}"
    known = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
    return [*lines, f"  {known}"] if known else lines


def _said(record: Fields) -> list[str]:
    words = ", ".join(record["trigger_words"])
    fields = {"trigger words": words, "licence": record["licence"], "tags": ", ".join(record["tags"])}
    fields["notes"] = record["notes"]
    lines = [f"  {name}: {value}" for name, value in fields.items() if value]
    overridden = sorted(record["overrides"].keys() - {"base"})
    return [*lines, f"  said by hand: {', '.join(overridden)}"] if overridden else lines


def _names(result: Fields) -> list[str]:
    record = result["record"]
    lines = [f"  sha256 {record['file_sha256']}"]
    if record["data_sha256"]:
        lines.append(f"  data sha256 {record['data_sha256']}")
    lines.append(f"  AutoV2 {record['autov2']}" + (f", AutoV3 {record['autov3']}" if record["autov3"] else ""))
    if len(result["versions"]) > 1:
        lines.append(f"  versions {', '.join(map(str, result['versions']))}")
    lines += [f"  @{alias} is version {number}" for alias, number in result["aliases"].items()]
    return lines


def _files(result: Fields) -> list[str]:
    record = result["record"]
    lines = ["  file in the store" if record["stored"] else "  file not in the store"]
    for place in result["locations"]:
        gone = f" (missing since {_time(place['missing_since'])})" if place["missing_since"] else ""
        lines.append(f"  file at {place['root'].rstrip('/')}/{place['relpath']}{gone}")
    lines += [f"  from {name} {value}" for name, value in record["source"].items()]
    lines += [f"  preview {preview}" for preview in record["previews"]]
    return [*lines, f"  added {_time(record['created_at'])}, last seen {_time(record['seen_at'])}"]


def _lineage(result: Fields) -> list[str]:
    recipe = result["recipe"]
    lines = [f"  made by {recipe['tool']}: {recipe['expression']} ({recipe['method']})"] if recipe else []
    for parent in result["parents"]:
        lines.append(f"    {parent['weight']:g} * {parent['reference'] or 'sha256:' + parent['sha256'][:12]}")
    return lines


def _time(moment: str) -> str:
    """A time to the minute; all are in UTC."""
    return f"{moment[:16].replace('T', ' ')} UTC"
