"""Threads are borrowed, never kept; however many there are, the results are the same."""

from __future__ import annotations

import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from threadpoolctl import ThreadpoolController

import lorahub as lh
from lorahub.algebra.geometry import square
from lorahub.algebra.machine import one_thread, side_by_side
from lorahub.algebra.recipe import Source


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in ThreadpoolController().select(user_api="blas").info()}


def test_numpy_has_one_thread_inside_and_its_own_again_outside() -> None:
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        before = blas_threads()
        with one_thread():
            assert blas_threads() <= {1}  # empty where NumPy's library is one that cannot be set
            with one_thread():
                square(torch.ones(4, 2))
            assert blas_threads() <= {1}
        assert blas_threads() == before


def test_an_error_gives_the_threads_back() -> None:
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        before = blas_threads()
        with pytest.raises(ZeroDivisionError), one_thread():
            raise ZeroDivisionError
        assert blas_threads() == before


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_items_come_in_order_from_as_many_threads_as_torch_has(threads: int) -> None:
    together = threading.Barrier(threads)

    def work(item: int) -> int:
        together.wait(timeout=60)  # passes only while that many work at once
        assert not torch.is_grad_enabled()
        assert torch.get_num_threads() == 1
        return item * item

    assert list(side_by_side(work, range(8 * threads))) == [item * item for item in range(8 * threads)]
    assert torch.get_num_threads() == threads


def test_an_error_comes_in_its_turn_and_ends_the_work(threads: int) -> None:
    begun: list[int] = []

    def work(item: int) -> float:
        begun.append(item)
        return 1 / (3 - item)

    results = side_by_side(work, range(1000))
    assert [next(results) for _ in range(3)] == [1 / 3, 1 / 2, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert len(begun) <= 2 * threads + 4
    assert torch.get_num_threads() == threads


def test_results_that_nobody_takes_do_not_pile_up(threads: int) -> None:
    begun: list[int] = []
    results = side_by_side(begun.append, range(1000))
    next(results)
    time.sleep(0.05)
    assert len(begun) <= 2 * threads + 1
    results.close()  # type: ignore[attr-defined]
    assert torch.get_num_threads() == threads


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    random = torch.Generator().manual_seed(0)
    layers = {
        f"unet.{i}": lh.LowRank.of(
            torch.randn(300 + 40 * i, 24, generator=random).half(), torch.randn(24, 500, generator=random).half()
        )
        for i in range(12)
    }
    adapter = lh.Adapter("sdxl", layers, {}, {}, Source("a", "", {}))
    found, before = [], torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        shorter = lh.truncate(adapter, lh.fixed(8))
        found.append((lh.norm(adapter), [t for layer in shorter.layers.values() for t in (layer.up, layer.down)]))
    torch.set_num_threads(before)
    for norm, tensors in found[1:]:
        assert norm == found[0][0]
        assert all(torch.equal(*pair) for pair in zip(tensors, found[0][1], strict=True))


def test_only_so_much_is_under_way_at_once(threads: int) -> None:
    fetched: list[int] = []

    def items() -> Iterator[int]:
        for size in (3, 3, 4, 10, 1, 12, 2, 2):
            fetched.append(size)
            yield size

    results = side_by_side(lambda size: size, items(), lambda size: size, 10)
    for done, size in enumerate(results, 1):
        assert size == fetched[done - 1]
        not_yet_taken = fetched[done:-1]  # the last that was fetched waits for room
        assert sum(not_yet_taken) <= 10
    assert len(fetched) == 8


FRAGMENTED = """
import os
import torch
from pathlib import Path
from lorahub.algebra.machine import give_freed_memory_back, keep_freed_memory

def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

keep_freed_memory()
freed, kept = [], []
for _ in range(20):
    freed.append(torch.ones(2**23, dtype=torch.uint8))
    kept.append(torch.ones(2**18, dtype=torch.uint8))
before = resident()
freed.clear()
untold = resident()
give_freed_memory_back()
assert all(bool(piece.all()) for piece in kept)
print(before - untold, untold - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries cannot be told to give memory back")
def test_memory_freed_between_pieces_in_use_goes_back() -> None:
    """In a process of its own, whose memory nobody has used before."""
    done = subprocess.run([sys.executable, "-c", FRAGMENTED], capture_output=True, text=True, check=True)
    at_once, when_told = map(int, done.stdout.split())
    assert at_once < 2**23  # else there would be nothing to tell
    assert when_told > 18 * 2**23
