"""NumPy's threads are borrowed, never kept."""

from __future__ import annotations

import pytest
import torch
from threadpoolctl import ThreadpoolController

from lorahub.algebra.geometry import square
from lorahub.algebra.machine import one_thread


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
