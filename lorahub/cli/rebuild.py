"""lorahub rebuild"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lorahub.cli import options, output


@click.command(short_help="Make an adapter again from its recipe, and prove it is the same.")
@click.argument("adapter", type=options.Reference())
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), help="Keep the result in this file.")
@click.option(
    "--parent",
    "parents",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="A file, or a folder of files, to find parents in that the registry does not have. Base models, too.",
)
@click.option("--force", is_flag=True, help="Overwrite the output if it exists.")
@options.json_option
def command(adapter: str, target: Path | None, parents: tuple[Path, ...], force: bool, as_json: bool) -> None:
    """Make an adapter again from its recorded recipe, and prove that the result is the same to the bit.

    Parents are found by the hash of their weights, whatever they are called and wherever they lie now. The registry
    holds no base models: for what `extract` made, say with --parent where both are. Without -o nothing is kept. Exits
    with 7 when the result or a parent differs, 4 when a parent is missing.

    \b
    Examples:
      lorahub rebuild fast-papercut
      lorahub rebuild ./fast.safetensors --parent ~/loras -o again.safetensors
      lorahub rebuild lcm --parent ~/models/sdxl --parent ~/models/lcm-sdxl
    """
    with output.progress("rebuilding") as advance:
        from dataclasses import asdict

        from lorahub.workspace.core import Workspace
        from lorahub.workspace.replaying import rebuild

        with Workspace.open() as workspace:
            done = rebuild(workspace, adapter, output=target, parents=parents, force=force, progress=advance)
    result = {"command": "rebuild", **asdict(done), "output": None if done.output is None else str(done.output)}
    output.emit(result, _as_lines, as_json)


def _as_lines(result: dict[str, Any]) -> list[str]:
    lines = [f"{result['reference']}: identical, data sha256 {result['data_sha256']}", f"  {result['expression']}"]
    lines += [f"  from {name} (data sha256 {sha256[:12]})" for name, sha256 in result["parents"]]
    if result["file_identical"] is False:
        lines.append(f"  its metadata differs: made by {result['made_by']}, rebuilt by {result['rebuilt_by']}")
    if result["output"] is not None:
        lines.append(f"  written to {result['output']}")
    return lines
