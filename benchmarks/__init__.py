"""Comparisons with other tools, run by hand: `python -m benchmarks.merge`.

Nothing here is part of the package or timed in tests. Everything runs on one thread.
"""

import os

for _library in ("OMP", "MKL", "OPENBLAS"):  # read once, when the library is loaded
    os.environ[f"{_library}_NUM_THREADS"] = "1"
