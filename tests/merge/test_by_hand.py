"""Every method on 4x4 matrices, with the answer written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorahub.algebra import fixed
from lorahub.merge import METHODS, merge
from tests.algebra.making import dense
from tests.merge.twins import holding

A = [[4, -3, 0.5, 0], [2, 0.1, -0.2, 1], [-0.9, 6, 0, 0.3], [0, 0, 5, -0.4]]
B = [[-2, -5, 0, 0], [7, 0, 0, 0.1], [0, 3, 0.2, 0], [0, 0, -4, 0.3]]
QUARTER = {"density": 0.25}
TEN = 10**0.5
HADAMARD = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).double() / 2

CASES = {
    "ties": (A, B, QUARTER, [[4, -4, 0, 0], [7, 0, 0, 0], [0, 4.5, 0, 0], [0, 0, 5, 0]]),
    "magnitude_prune": (A, B, QUARTER, [[4, -8, 0, 0], [7, 0, 0, 0], [0, 9, 0, 0], [0, 0, 1, 0]]),
    "breadcrumbs": (
        A, B, QUARTER | {"gamma": 0.125}, [[2, -3, 0, 0], [2, 0, 0, 1], [0, 3, 0, 0], [0, 0, -4, 0.3]]
    ),
    "breadcrumbs_ties": (
        A, B, QUARTER | {"gamma": 0.125}, [[4, -3, 0, 0], [2, 0, 0, 1], [0, 3, 0, 0], [0, 0, -4, 0.3]]
    ),
    # Which numbers stay is drawn; this is what seed 0 draws, on every machine and in every version.
    "dare_linear": (
        A, B, {"density": 0.5}, [[-4, -10, 0, 0], [4, 0, -0.4, 2.2], [-1.8, 12, 0, 0], [0, 0, 2, -0.8]]
    ),
    "dare_ties": (
        A, B, {"density": 0.5}, [[-4, -10, 0, 0], [4, 0, -0.4, 1.1], [-1.8, 12, 0, 0], [0, 0, 10, -0.8]]
    ),
    # The chances in a row are 3/12, 5/12, 7/12 and 9/12, from the least to the largest number.
    "della_linear": (
        A, B, {"density": 0.5, "epsilon": 0.25},
        [[-24 / 7, -20 / 3, 0, 0], [12, 0, -0.48, 13.2 / 7], [-10.8 / 7, 8, 0, 0], [0, 0, 4 / 3, -4.8 / 7]],
    ),
    "della": (
        A, B, {"density": 0.5, "epsilon": 0.25},
        [[-24 / 7, -20 / 3, 0, 0], [6, 0, -0.48, 6.6 / 7], [-10.8 / 7, 8, 0, 0], [0, 0, 20 / 3, -4.8 / 7]],
    ),
    "slerp": (
        [[2, 0, 0, 0], [0] * 4, [0] * 4, [0] * 4], [[0] * 4, [0, 2, 0, 0], [0] * 4, [0] * 4], {},
        [[2**0.5, 0, 0, 0], [0, 2**0.5, 0, 0], [0] * 4, [0] * 4],
    ),
    # u1 = e1, u2 = 0.6 e1 + 0.8 e2 become (3, -1) and (1, 3) over the root of ten.
    "tsv": (
        [[2, 0, 0, 0], [0] * 4, [0] * 4, [0] * 4], [[0, 0.6, 0, 0], [0, 0.8, 0, 0], [0] * 4, [0] * 4], {},
        [[6 / TEN, 1 / TEN, 0, 0], [-2 / TEN, 3 / TEN, 0, 0], [0] * 4, [0] * 4],
    ),
    "iso_c": (
        torch.diag(torch.tensor([5.0, 0, 0, 0])).tolist(), torch.diag(torch.tensor([0, 0, 3.0, 1])).tolist(), {},
        torch.diag(torch.tensor([3.0, 0, 3, 3])).tolist(),
    ),
    # In the joint basis, the columns of HADAMARD, the adapters are diagonal: there 2 of 12 numbers stay.
    "knots_ties": (
        (HADAMARD @ torch.diag(torch.tensor([4.0, 1, 2, 0]).double())).tolist(),
        (HADAMARD @ torch.diag(torch.tensor([2.0, -3, 6, 0]).double())).tolist(), {"density": 0.17},
        (HADAMARD @ torch.diag(torch.tensor([4.0, -3, 4, 0]).double())).tolist(),
    ),
    "knots_dare": (
        (HADAMARD @ torch.diag(torch.tensor([4.0, 1, 2, 0]).double())).tolist(),
        (HADAMARD @ torch.diag(torch.tensor([2.0, -3, 6, 0]).double())).tolist(), {"density": 0.5},
        (HADAMARD @ torch.diag(torch.tensor([8.0, 2, 0, 0]).double())).tolist(),
    ),
}  # fmt: skip


def matrix(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_every_method_is_here() -> None:
    assert CASES.keys() == METHODS.keys()


@pytest.mark.parametrize("method", METHODS)
def test_by_hand(method: str) -> None:
    a, b, settings, expected = CASES[method]
    made = merge(
        [holding(matrix(a)), holding(matrix(b), "lcm")], [1, 1], method, settings, fixed(4), dtype=torch.float64
    )
    allowed = 1e-4 if METHODS[method].sparsify == "della" else 1e-12  # chances are multiples of 1/65536
    torch.testing.assert_close(dense(made.layers["unet.layer"]), matrix(expected), atol=allowed, rtol=0)
