"""How long `list`, `search` and `show` work in a registry of 10,000 and 100,000 adapters.

    python -m benchmarks.catalogue [COUNT...]

The records are synthetic but of true size: evidence, ranks and layers of components, tags, trigger words, notes, a place
in a folder. The registry is opened before the clock starts (the bars are for work, not for imports), and each number is
the median wall-clock time of several runs, output included as the command line makes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from lorahub.cli import catalogue
from lorahub.workspace import listing, showing
from lorahub.workspace.completing import complete
from lorahub.workspace.core import Workspace
from registry import Facts, Location

WORDS = (
    *("paper", "cut", "ink", "anime", "film", "grain", "neon", "watercolour"),
    *("portrait", "detail", "slider", "lighting", "retro", "pixel", "clay", "mecha"),
)
BASES = ("sd15", "sdxl", "flux1", "sd3", "wan21")
KINDS = ("style", "subject", "acceleration", "slider", "control")
REPEAT = 7


def fill(workspace: Workspace, count: int) -> None:
    chance = random.Random(0)
    for start in range(0, count, 5000):
        with workspace.transaction():
            for number in range(start, min(count, start + 5000)):
                add(workspace, number, chance)


def add(workspace: Workspace, number: int, chance: random.Random) -> None:
    words = chance.sample(WORDS, 4)
    name = f"{words[0]}_{words[1]}_{number}"
    facts = Facts(
        file_sha256=hashlib.sha256(str(number).encode()).hexdigest(),
        size=chance.randrange(10**7, 10**9),
        format=chance.choice(("kohya", "diffusers", "peft")),
        kind=chance.choice(KINDS),
        base_detected=chance.choice(BASES),
        evidence=tuple(f"evidence {i}: down_blocks.1.attentions.0 has 2 transformer blocks" for i in range(6)),
        ranks={"unet": (chance.choice((8, 16, 32, 64, 128)),), "te1": (8,), "te2": (8,)},
        layers={"unet": 722, "te1": 72, "te2": 192},
        parameters=chance.randrange(10**6, 10**8),
        dtype="F16",
        trigger_words=tuple(words),
        licence="creativeml-openrail-m",
    )
    place = Location(
        root="/loras", relpath=f"{words[2]}/{name}.safetensors", size=1, mtime_ns=1, inode=number, device=1
    )
    notes = f"made for {words[3]} {number}"
    workspace.registry.add_version(name, facts, tags=words[:2], notes=notes, location=place)


def milliseconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEAT):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def printed(command: str, find: Callable[[], object], limit: int) -> Callable[[], None]:
    def work() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            catalogue.listed(command, find(), limit, quiet=False, as_json=False)  # type: ignore[arg-type]

    return work


def measure(count: int, home: Path) -> None:
    with Workspace.open(home) as workspace:
        began = time.perf_counter()
        fill(workspace, count)
        print(f"{count} adapters, filled in {time.perf_counter() - began:.0f} s", flush=True)
        some = workspace.registry.names("ink", limit=1)[0]
        limit = catalogue.LIMIT
        found = {
            "list (the first 100)": lambda: listing.list_adapters(workspace, limit=limit + 1),
            "list --base --kind --rank": lambda: listing.list_adapters(
                workspace, base="sdxl", kind="style", rank=(16, 64), limit=limit + 1
            ),
            "list --tag": lambda: listing.list_adapters(workspace, tag="neon", limit=limit + 1),
            "list --sort -created": lambda: listing.list_adapters(workspace, sort="-created", limit=limit + 1),
            "search, one rare word": lambda: listing.search(workspace, str(count - 1), limit=limit + 1),
            "search, a common word": lambda: listing.search(workspace, "neon", limit=limit + 1),
            "search, two words and a base": lambda: listing.search(workspace, "pap ink", base="sdxl", limit=limit + 1),
        }
        for label, find in found.items():
            print(f"  {label:32} {milliseconds(printed('list', find, limit)):8.1f} ms", flush=True)
        print(f"  {'show':32} {milliseconds(lambda: showing.show(workspace, some)):8.1f} ms", flush=True)
        print(f"  {'completion of a name':32} {milliseconds(lambda: complete('ink')):8.1f} ms", flush=True)
        everything = printed("list", lambda: listing.list_adapters(workspace), 0)
        print(f"  {'list --limit 0 (all)':32} {milliseconds(everything):8.1f} ms", flush=True)


@click.command(help=__doc__)
@click.argument("counts", nargs=-1, type=int)
def main(counts: tuple[int, ...]) -> None:
    import os

    for count in counts or (10_000, 100_000):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["LORAHUB_HOME"] = folder
            measure(count, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
