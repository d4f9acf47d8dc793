"""Finding the nearest of 10,000 adapters by their sketches: python -m benchmarks.similar [--count N]

The sketches are synthetic; what is timed is all the work of a query but the sketch of the one asked about: reading every
sketch from SQLite, and the cosines. The re-ranking by weights comes on top; it depends on the files, not on how many.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from pathlib import Path

import numpy as np

from lorahub.workspace.sketch import KIND, SIZE, cosines, pack
from registry import Facts, Registry, Sketch


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    count = parser.parse_args().count
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, Registry.open(Path(folder)) as registry:
        with registry.transaction():
            for number in range(count):
                facts = Facts(file_sha256=hashlib.sha256(b"%d" % number).hexdigest(), size=1, format="kohya")
                record = registry.add_version(f"a{number}", facts)
                data = pack(random.normal(size=SIZE))
                registry.put_sketch(record.reference, Sketch(kind=KIND, base="sdxl", norm=1.0, data=data))
        times = []
        for _ in range(7):
            start = time.process_time()
            names, _, data = registry.sketches(KIND, "sdxl")
            read = time.process_time()
            order = np.argsort(-np.abs(cosines(data[count // 2], data)))
            times.append((time.process_time() - start, read - start))
            assert names[order[0]] == f"a{count // 2}:1"
        whole, reading = sorted(times)[len(times) // 2]
        size = sum(len(each) for each in data) / 1e6
        print(
            f"{count} sketches, {size:.1f} MB: {whole * 1000:.0f} ms of CPU a query, of which reading {reading * 1000:.0f}"
        )


if __name__ == "__main__":
    main()
