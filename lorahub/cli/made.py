"""How a file that was made is reported, by every command that makes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lorahub.cli.output import human_size

if TYPE_CHECKING:
    from lorahub.algebra.adapter import Adapter
    from lorahub.making import Combination, Made, Wish


def produce(
    command: str,
    adapter: Adapter | Combination,
    wish: Wish,
    *,
    path: str | None,
    name: str | None,
    tags: tuple[str, ...],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Make the file, and register it when it is to have a name; the result of the command."""
    from lorahub.making import make

    if name is None:
        return as_result(command, make(adapter, str(path), wish, progress=progress))
    from lorahub.workspace.composing import compose
    from lorahub.workspace.core import Workspace

    with Workspace.open() as workspace:
        done = compose(workspace, adapter, name, wish, path=path, tags=tags, progress=progress)
    registered = {"reference": done.reference, "sha256": done.file_sha256}
    parents = [asdict(parent) for parent in done.parents]
    return {**as_result(command, done.made), "output": path, "registered": registered, "parents": parents}


def as_result(command: str, made: Made) -> dict[str, Any]:
    facts = asdict(made)
    saved = facts.pop("saved")
    saved["output"] = str(saved.pop("path"))
    del saved["error"]  # part of read_back_error
    ranks = facts.pop("ranks")
    del facts["recipe"]  # the expression says it
    return {"command": command, **saved, **facts, "rank_min": ranks[0], "rank_max": ranks[1]}


def as_lines(result: dict[str, Any]) -> list[str]:
    low, high = result["rank_min"], result["rank_max"]
    registered = result.get("registered", {}).get("reference")
    where = result["output"] if result["output"] is not None else registered
    rank = f"rank {high}" if low == high else f"rank {low} to {high}"
    before = f" (was {result['rank_before']})" if result["rank_before"] != high else ""
    lines = [
        f"{where}: {result['base']}, {result['format']}, {result['dtype']}, {human_size(result['size'])}",
        f"  {result['layers']} layers, {rank}{before}",
    ]
    if result["method"] != "linear":
        settings = ", ".join(f"{name} {value}" for name, value in result["settings"].items())
        lines.append(f"  merged by {result['method']}{f' ({settings})' if settings else ''}")
    if result["rule"]:
        lines.append(f"  {result['rule']} leaves out {result['relative_error']:.3%} of the norm")
    if result["factor"] is not None:
        lines.append(f"  scaled by {result['factor']:.4g} to the norm of the first adapter")
    lines.append(
        f"  read back and compared: ΔW differs by {result['read_back_error']:.1e} of its norm ({result['dtype']} rounding)"
    )
    if registered is not None:
        terms = [f"{each['weight']:g} x {each['reference'] or each['sha256'][:12]}" for each in result["parents"]]
        lines.append(f"  registered as {registered}, made of {', '.join(terms)}")
    return lines
