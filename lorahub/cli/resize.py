"""lorahub resize"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lorahub.cli import made, options, output, table


@click.command(short_help="Reduce the rank of an adapter, or of all in a folder.")
@click.argument("adapter", type=options.Reference())
@options.output_options
@options.rank_options
@options.format_option("--format", "Spelling of the file. [kohya]")
@options.base_option
@options.device_option
@options.pickle_option
@options.json_option
def command(adapter: str, as_json: bool, **given: Any) -> None:
    """Reduce the rank of an adapter: the best approximation there is, with the error it makes.

    A folder of adapters is written to the folder -o, each adapter by itself and in the same place; a PEFT folder is one
    adapter. What cannot be resized is listed with the reason, and the exit code is 8. Existing outputs are kept, so an
    interrupted run can be finished by running it again.

    \b
    Examples:
      lorahub resize lcm-lora.safetensors -o lcm-16.safetensors --rank 16
      lorahub resize big.safetensors -o small.safetensors --energy 0.95
      lorahub resize big.safetensors -o small.safetensors --max-size 50MB
      lorahub resize style:2 --name style-small --rank 8
      lorahub resize ~/loras -o ~/loras-small --max-size 100MB
    """
    if not options.rule_is_given(given):
        raise click.UsageError("say how small: --rank, --energy, --relative or --max-size")
    if _is_batch(adapter, given["output"]):
        _resize_folder(adapter, as_json, given)
        return
    with output.progress("resizing") as advance:
        from lorahub.loading import load
        from lorahub.making import Wish

        base, allow_pickle = (given.pop(name) for name in ("base", "allow_pickle"))
        where = {"path": given.pop("output"), "name": given.pop("name"), "tags": given.pop("tags")}
        wish = Wish(**{name: value for name, value in given.items() if value is not None})
        vector = load(adapter, base=base, allow_pickle=allow_pickle)
        result = made.produce("resize", vector, wish, **where, progress=advance)
    output.emit(result, made.as_lines, as_json)


def _is_batch(adapter: str, target: str | None) -> bool:
    """Whether it is a folder of adapters; one that is written to a file is taken for the adapter that it holds."""
    folder = Path(adapter)
    if not folder.is_dir() or (target is not None and target.endswith(".safetensors")):
        return False
    from lorahub.files.paths import is_one_adapter

    return not is_one_adapter(folder)


def _resize_folder(folder: str, as_json: bool, given: dict[str, Any]) -> None:
    if given.pop("name") is not None or given.pop("tags"):
        raise click.UsageError(f"{folder} is a folder of adapters: --name and --tag are for one")
    with output.progress("resizing") as advance:
        from lorahub.making import Wish
        from lorahub.resizing import resize_folder

        base, allow_pickle, target = (given.pop(name) for name in ("base", "allow_pickle", "output"))
        wish = Wish(**{name: value for name, value in given.items() if value is not None})
        done = resize_folder(Path(folder), Path(target), wish, base=base, allow_pickle=allow_pickle, progress=advance)
    resized = []
    for each in done.resized:
        facts = made.as_result("resize", each.made)
        del facts["command"]
        resized.append(facts | {"source": each.source, "output": each.output, "size_before": each.size_before})
    others = {"failed": done.failed, "ignored": done.ignored}
    result = {"command": "resize", "folder": folder, "output": target, "resized": resized, **others}
    table.emit(result, ("adapter", "size before", "size", "rank before", "rank", "left out"), _rows(resized), as_json)
    if not as_json:
        output.emit(result, _summary, as_json)
    if done.failed:
        click.get_current_context().exit(8)


def _rows(resized: list[dict[str, Any]]) -> list[tuple[object, ...]]:
    return [
        (
            each["output"],
            table.size(each["size_before"]),
            table.size(each["size"]),
            each["rank_before"],
            each["rank_max"],
            f"{each['relative_error']:.3%}",
        )
        for each in resized
    ]


def _summary(result: dict[str, Any]) -> list[str]:
    resized, failed = result["resized"], result["failed"]
    lines = [f"not resized: {path}: {reason}" for path, reason in failed]
    if result["ignored"]:
        lines.append(f"no adapters: {', '.join(result['ignored'])}")
    before, after = (output.human_size(sum(each[size] for each in resized)) for size in ("size_before", "size"))
    sizes = f": {before} became {after}" if resized else ""
    return [*lines, f"{len(resized)} of {len(resized) + len(failed)} adapters resized{sizes}"]
