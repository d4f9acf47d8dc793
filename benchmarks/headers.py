"""Headers read and validated a second, against json.loads of the same bytes and against safetensors' own reader.

`python -m benchmarks.headers`. The files are sparse: their data regions hold nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open

from benchmarks.make import ATTENTION, Recipe, layer_shapes
from benchmarks.measure import machine, one_thread, seconds, table
from lorahub import header


def write(path: Path, recipe: Recipe) -> bytes:
    """A file with the header of a kohya adapter; returns the JSON."""
    entries: dict[str, object] = {"__metadata__": {"ss_network_dim": str(recipe.rank)}}
    position = 0
    for name, shape in layer_shapes(recipe).items():
        module = "lora_" + name.replace(".", "_")
        for part, dims in (
            ("alpha", []),
            ("lora_down.weight", [recipe.rank, *shape[1:]]),
            ("lora_up.weight", [shape[0], recipe.rank, *[1] * len(shape[2:])]),
        ):
            size = 2
            for length in dims:
                size *= length
            entries[f"{module}.{part}"] = {"dtype": "F16", "shape": dims, "data_offsets": [position, position + size]}
            position += size
    raw = json.dumps(entries, separators=(",", ":")).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + position)
    return raw


def official(path: Path, *, shapes: bool) -> list[object]:
    """What safetensors' own reader tells: names, and shapes if asked."""
    with safe_open(path, framework="pt") as file:
        file.metadata()
        names = file.keys()
        return [file.get_slice(name).get_shape() for name in names] if shapes else list(names)


def rates(paths: list[Path], recipe: Recipe, rounds: int) -> list[int]:
    """Headers a second of every reader, over `rounds` times all paths."""
    raws = [write(path, recipe) for path in paths]
    works: tuple[Callable[[], object], ...] = (
        lambda: [header.read(path) for _ in range(rounds) for path in paths],
        lambda: [json.loads(raw) for _ in range(rounds) for raw in raws],
        lambda: [official(path, shapes=False) for _ in range(rounds) for path in paths],
        lambda: [official(path, shapes=True) for _ in range(rounds) for path in paths],
    )
    return [round(rounds * len(paths) / seconds(work, repeat=5)) for work in works]


def main() -> None:
    one_thread()
    print(machine(), "\n")
    rows: list[tuple[object, ...]] = [
        ("headers a second", "lorahub, validated", "json.loads", "safe_open, names", "safe_open, names and shapes")
    ]
    with tempfile.TemporaryDirectory() as name:
        for title, recipe, count in (
            ("SDXL attention, 1680 tensors", Recipe("sdxl", ATTENTION, 16), 200),
            ("8 layers, 24 tensors", Recipe("sdxl", ATTENTION, 16, limit=8), 2000),
        ):
            paths = [Path(name) / f"{index}.safetensors" for index in range(20)]
            rows.append((title, *rates(paths, recipe, count // len(paths))))
    table(rows)


if __name__ == "__main__":
    main()
