"""How the arithmetic uses the processor and the memory of the machine.

The rule: a layer is one thread's work, in torch and in NumPy alike, and layers go side by side. A product that is shared
among threads makes them wait for each other, several times as long where another program wants a core too; two pools of
threads do so to one another. One thread also adds in one order: the same input gives the same bits.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from threadpoolctl import LibController, ThreadpoolController

MOST_THREADS = 8
"""Layers at once: each takes memory, and what Python does for them goes on one at a time."""
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@cache
def _libraries() -> list[LibController]:
    """What NumPy's products run on; torch's own copy is not among them."""
    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keeps NumPy's BLAS on one thread. Cheap to enter again where that is so already.

    OpenBLAS may ignore what another thread sets, so each gives back what it took itself.
    """
    taken = [(library, count) for library in _libraries() if (count := library.get_num_threads()) != 1]
    for library, _ in taken:
        library.set_num_threads(1)
    try:
        yield
    finally:
        for library, count in taken:
            library.set_num_threads(count)


@contextlib.contextmanager
def in_numpy() -> Iterator[None]:
    """For arithmetic in NumPy: on one thread, and Inf and NaN make no warnings, because callers look for them."""
    with one_thread(), np.errstate(over="ignore", invalid="ignore"):
        yield


def side_by_side(
    work: Callable[[_Item], _Result],
    items: Iterable[_Item],
    size: Callable[[_Item], float] = lambda item: 0,
    room: float = math.inf,
) -> Iterator[_Result]:
    """work(item) of every item, in order, without gradients, on as many threads as torch may use (at most MOST_THREADS).

    size: what an item takes up; items are only fetched and worked on together while theirs add up to at most `room`.
    At most twice as many results as threads wait to be taken. What `work` raises is raised in the item's turn.
    """
    allowed = torch.get_num_threads()
    threads = min(allowed, MOST_THREADS)
    if threads == 1:
        yield from map(torch.no_grad()(work), items)
        return
    torch.set_num_threads(1)  # threads that start now take it over
    pool, waiting, taken = ThreadPoolExecutor(threads), deque[tuple[Future[_Result], float]](), 0.0
    try:
        for item in items:
            own = size(item)
            while waiting and (len(waiting) > 2 * threads or taken + own > room):
                oldest, freed = waiting.popleft()
                yield oldest.result()
                taken -= freed
            waiting.append((pool.submit(torch.no_grad()(work), item), own))
            taken += own
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(allowed)


@cache
def keep_freed_memory() -> None:
    """Makes the C library keep up to 64 MB of freed memory for the next tensors, instead of paying for every page again.

    glibc raises both its thresholds when a block is freed that was mapped on its own, up to 32 MB (mallopt(3),
    M_MMAP_THRESHOLD). The block is never written to, so it takes no memory; other C libraries do nothing special.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def give_freed_memory_back() -> None:
    """Returns to the system what the C library keeps between pieces that are in use: `keep_freed_memory` undone for once.

    For after large work: the next pages are paid for again. Only glibc is known to keep much, and can be told.
    """
    if sys.platform == "linux" and (trim := getattr(_c_library(), "malloc_trim", None)):
        trim(0)


@cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None)
