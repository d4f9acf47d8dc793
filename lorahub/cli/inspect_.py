"""lorahub inspect (the underscore keeps clear of the standard library's module)"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lorahub.cli import options, output

if TYPE_CHECKING:
    from lorahub.files.inspecting import Inspection


@click.command(name="inspect", short_help="Say what an adapter file is.")
@click.argument("adapter", type=options.Reference())
@click.option("--hash", "hashes", is_flag=True, help="Read the weights once and check the hash in the metadata.")
@click.option("--metadata", "show_metadata", is_flag=True, help="Print the metadata of the file.")
@options.json_option
def command(adapter: str, hashes: bool, show_metadata: bool, as_json: bool) -> None:
    """Say what an adapter file is, from its header: format, base model with evidence, ranks, scales.

    \b
    Examples:
      lorahub inspect style.safetensors
      lorahub inspect lora-folder/ --json
    """
    from lorahub.files.inspecting import inspect
    from lorahub.references import locate

    with output.progress("inspecting"):
        files = [_as_result(found) for found in inspect(locate(adapter), hashes=hashes)]
    output.emit({"command": "inspect", "files": files}, lambda result: _as_lines(result, show_metadata), as_json)


def _as_result(found: Inspection) -> dict[str, Any]:
    from dataclasses import asdict

    facts = asdict(found)
    facts["path"] = str(found.path)
    facts["additive"] = not found.not_additive and not found.unknown
    return facts


def _as_lines(result: dict[str, Any], show_metadata: bool) -> list[str]:
    blocks = [["", *_file_lines(facts, show_metadata)] for facts in result["files"]]
    return [line for block in blocks for line in block][1:]


def _file_lines(facts: dict[str, Any], show_metadata: bool) -> list[str]:
    detection = facts["detection"]
    dtypes = ", ".join(sorted(facts["dtypes"]))
    lines = [
        f"{facts['path']}: {facts['format']}, {dtypes}, {output.human_size(facts['size'])}",
        _base_line(detection),
    ]
    if detection["declared"] not in (None, detection["base"]):
        lines.append(f"  declared in the metadata: {detection['declared']}")
    lines += [f"    {sentence}" for sentence in detection["evidence"]]
    for part in facts["parts"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in part["kinds"].items())
        lines.append(f"  {part['name']}: {kinds}; rank {_range(part['ranks'])}, scale {_range(part['scales'])}")
    if facts["embeddings"]:
        lines.append(f"  textual-inversion tokens: {', '.join(facts['embeddings'])}")
    lines += [f"  not a vector: {reason}" for reason in facts["not_additive"].values()]
    if facts["unknown"]:
        lines.append(f"  {len(facts['unknown'])} keys are not understood, such as {facts['unknown'][0]}")
    lines += [f"  note: {note}" for note in facts["notes"]]
    if facts["provenance"]:
        lines.append(f"  made by {facts['provenance'].get('tool')}: {facts['provenance'].get('expression')}")
    if facts["hashes"]:
        lines.append(f"  data sha256 {facts['hashes']['data_sha256']} (metadata: {facts['hashes']['verdict']})")
    if show_metadata:
        lines += [f"  {key}: {value}" for key, value in facts["metadata"].items()]
    return lines


def _base_line(detection: dict[str, Any]) -> str:
    if detection["base"]:
        return f"  base {detection['base']} (confidence {detection['confidence']:.2f})"
    if detection["candidates"]:
        return f"  base ambiguous: {', '.join(detection['candidates'])}"
    return "  base not listed"


def _range(values: list[float]) -> str:
    if not values:
        return "-"
    low, high = values[0], values[-1]
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
