"""How a file that was made is reported, by every command that makes one."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lorahub.cli.options import human_size

if TYPE_CHECKING:
    from lorahub.making import Made


def as_result(command: str, made: Made) -> dict[str, Any]:
    facts = asdict(made)
    saved = facts.pop("saved")
    saved["output"] = str(saved.pop("path"))
    del saved["error"]  # part of read_back_error
    ranks = facts.pop("ranks")
    return {"command": command, **saved, **facts, "rank_min": ranks[0], "rank_max": ranks[1]}


def as_text(result: dict[str, Any]) -> str:
    low, high = result["rank_min"], result["rank_max"]
    rank = f"rank {high}" if low == high else f"rank {low} to {high}"
    before = f" (was {result['rank_before']})" if result["rank_before"] != high else ""
    lines = [
        f"{result['output']}: {result['base']}, {result['format']}, {result['dtype']}, {human_size(result['size'])}",
        f"  {result['layers']} layers, {rank}{before}",
    ]
    if result["rule"]:
        lines.append(f"  {result['rule']} leaves out {result['relative_error']:.3%} of the norm")
    lines.append(
        f"  read back and compared: ΔW differs by {result['read_back_error']:.1e} of its norm ({result['dtype']} rounding)"
    )
    return "\n".join(lines)
