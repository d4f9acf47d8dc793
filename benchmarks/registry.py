"""How long the registry takes at the size of a large collection: `python -m benchmarks.registry [FILES] [STRUCTURES]`.

Makes FILES (10,000) sparse adapters with SDXL headers of some 300 kB, of STRUCTURES (24) different sets of layers and ranks, in
a temporary folder, and prints a table of wall and CPU seconds. Run by hand; what it prints goes into benchmarks/README.md.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

from lorahub import bases
from lorahub.bases.model import flatten
from lorahub.workspace.core import Workspace
from lorahub.workspace.scanning import scan

HEADER = 300_000
OLD = 1_600_000_000


def tensors(structure: int) -> tuple[dict[str, Any], int]:
    """The header of an SDXL adapter of one of many structures, without metadata, and the size of its data."""
    rank, layers = 4 + 4 * (structure % 8), 680 + structure // 8
    described: dict[str, Any] = {}
    end = 0
    unet = {name: shape for name, shape in bases.get("sdxl").components["unet"].layers.items() if len(shape) == 2}
    for name, (rows, columns) in list(unet.items())[:layers]:
        stem = f"lora_unet_{flatten(name)}"
        for part, shape in (("lora_down.weight", [rank, columns]), ("lora_up.weight", [rows, rank]), ("alpha", [])):
            start, end = end, end + 2 * prod(shape)
            described[f"{stem}.{part}"] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    return described, end


def make_files(root: Path, count: int, structures: int) -> int:
    """Write the files; returns the size of a header."""
    texts = [(json.dumps(found, separators=(",", ":"))[1:], size) for found, size in map(tensors, range(structures))]
    for number in range(count):
        text, size = texts[number % structures]
        tags = {f"{word} {number % 97}": 9 for word in ("paper", "ink", "night", "cat")}
        said = {"ss_output_name": f"style {number}", "ss_tag_frequency": json.dumps({"set": tags})}
        header = f'{{"__metadata__":{json.dumps(said)},{text}'.encode()
        path = root / f"folder{number % 100}" / f"style{number}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + size)
        os.utime(path, (OLD, OLD))
    return len(header)


def timed(what: str, verb: Callable[[], Any]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    verb()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"| {what} | {wall:.3f} | {cpu:.3f} |", flush=True)


def main(count: int, structures: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "loras"
        header = make_files(root, count, structures)
        print(f"{count} files, headers of {header // 1000} kB, {structures} structures\n")
        print("| what | wall s | CPU s |\n| --- | --- | --- |")
        with Workspace.open(Path(folder) / "home") as workspace:
            registry = workspace.registry
            timed("first index, headers only", lambda: scan(workspace, [root], hash=False))
            timed("rescan, nothing changed", lambda: scan(workspace, [root], hash=False))
            timed("list, first 100", lambda: registry.list(limit=100))
            timed("list, one base, by size", lambda: registry.list(base="sdxl", sort="-size", limit=100))
            timed("search, two words", lambda: registry.search("paper 42"))
            timed("show", lambda: registry.get(f"style{count // 2}"))
            (root / "folder1" / "style1.safetensors").rename(root / "folder1" / "moved.safetensors")
            timed("rescan, one file moved", lambda: scan(workspace, [root], hash=False))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000, int(sys.argv[2]) if len(sys.argv) > 2 else 24)
