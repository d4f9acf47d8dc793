"""Clocks, memory and rates, measured the same way by every benchmark; one thread, whatever the machine has."""

from __future__ import annotations

import contextlib
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch


def one_thread() -> None:
    """lorahub and its peers are compared on one core each; without gradients, as all of them run."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)


def seconds(work: Callable[[], object], *, repeat: int = 1) -> float:
    """Median CPU seconds of `repeat` runs: on a shared machine the wall clock also counts what others do."""
    times = []
    for _ in range(repeat):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return statistics.median(times)


class Stages:
    """CPU seconds by stage name, and the wall clock over all of them."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {}
        self.wall = 0.0

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began, clock = time.process_time(), time.perf_counter()
        yield
        self.times[name] = self.times.get(name, 0.0) + time.process_time() - began
        self.wall += time.perf_counter() - clock

    @property
    def total(self) -> float:
        return sum(self.times.values())


def gemm_rate(size: int = 1536) -> float:
    """float32 operations per second of a large square product on one core, the best of several."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / min(seconds(lambda: a @ b) for _ in range(8))


def core_seconds(rank: int) -> float:
    """float64 Cholesky, two products and eigh of one [rank, rank] core: what no layer can do without."""
    random = torch.randn(4 * rank, rank, dtype=torch.float64)
    gram = random.T @ random

    def core() -> None:
        root = torch.linalg.cholesky(gram)
        torch.linalg.eigh(root.T @ gram @ root)

    return min(seconds(core) for _ in range(7))


class AnonymousMemory:
    """Samples the anonymous memory of this process (what is not a mapped file), in a thread."""

    def __init__(self) -> None:
        self.peak = self.start = _status("RssAnon")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> AnonymousMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.peak = max(self.peak, _status("RssAnon"))


def peak_resident() -> int:
    """Largest resident size so far, in bytes, mapped pages of the inputs included."""
    return _status("VmHWM")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this system does not report {field}")


def machine() -> str:
    """The machine in words: processor and libraries, no names."""
    models = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, one thread, torch {torch.__version__}"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def table(rows: Sequence[Sequence[object]]) -> None:
    """Print rows as a Markdown table; the first is the head."""
    texts = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    texts.insert(1, ["-" * width for width in widths])
    for row in texts:
        print("| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |", flush=True)
