"""How the arithmetic uses the processor and the memory of the machine.

The rule: torch has its own pool of threads, and a second one beside it slows both down several times, so a product that
NumPy does better runs on the thread that asks. One thread also adds in one order: the same input gives the same bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from threadpoolctl import LibController, ThreadpoolController


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


@cache
def keep_freed_memory() -> None:
    """Makes the C library keep up to 64 MB of freed memory for the next tensors, instead of paying for every page again.

    glibc raises both its thresholds when a block is freed that was mapped on its own, up to 32 MB (mallopt(3),
    M_MMAP_THRESHOLD). The block is never written to, so it takes no memory; other C libraries do nothing special.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
