"""The formulas against numbers worked by hand, and against the schedulers and pipelines of diffusers."""

from __future__ import annotations

import math

import pytest
import torch

from lorahub.distill import consistency
from lorahub.errors import UsageError
from tests.distill.tiny import sd

KINDS = ("epsilon", "v_prediction", "sample")


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_boundary_scalings_by_hand() -> None:
    t = tensor(0, 0.05, 1)
    assert consistency.c_skip(t).tolist() == pytest.approx([1, 0.5, 0.25 / 100.25])
    assert consistency.c_out(t).tolist() == pytest.approx([0, math.sqrt(0.5), 10 / math.sqrt(100.25)])
    assert consistency.c_skip(tensor(3), sigma_data=4, timestep_scaling=1).tolist() == pytest.approx([16 / 25])
    assert consistency.c_out(tensor(3), sigma_data=4, timestep_scaling=1).tolist() == pytest.approx([3 / 5])


def test_boundary_scalings_are_those_of_lcm_scheduler() -> None:
    from diffusers import LCMScheduler

    scheduler = LCMScheduler()
    for t in (0, 1, 19, 499, 999):
        skip, out = scheduler.get_scalings_for_boundary_condition_discrete(t)
        assert float(consistency.c_skip(tensor(t))) == pytest.approx(skip, rel=1e-12)
        assert float(consistency.c_out(tensor(t))) == pytest.approx(out, rel=1e-12)


def test_the_consistency_function_is_the_identity_at_zero() -> None:
    x, guess = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    zero = torch.zeros(2, 1, 1, 1)
    assert torch.equal(consistency.f(x, guess, consistency.c_skip(zero), consistency.c_out(zero)), x)


def answer(
    kind: str, x_0: torch.Tensor, epsilon: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """What a perfect network of a kind says."""
    return {"epsilon": epsilon, "sample": x_0, "v_prediction": alpha * epsilon - sigma * x_0}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_recover_image_and_noise(kind: str) -> None:
    x_0, epsilon = torch.randn(2, 4, 3, 3).double(), torch.randn(2, 4, 3, 3).double()
    alpha, sigma = tensor(0.6, 0.28).reshape(2, 1, 1, 1), tensor(0.8, 0.96).reshape(2, 1, 1, 1)
    x = consistency.x_t(x_0, epsilon, alpha, sigma)
    output = answer(kind, x_0, epsilon, alpha, sigma)
    torch.testing.assert_close(consistency.predicted_x_0(output, x, alpha, sigma, kind), x_0)
    torch.testing.assert_close(consistency.predicted_epsilon(output, x, alpha, sigma, kind), epsilon)


def test_an_unknown_prediction_type_is_refused() -> None:
    one = torch.ones(1)
    for function in (consistency.predicted_x_0, consistency.predicted_epsilon):
        with pytest.raises(UsageError, match="'flow'; expected one of epsilon"):
            function(one, one, one, one, "flow")


def test_guidance_by_hand_and_in_the_usual_form() -> None:
    c, u = tensor(3, -1), tensor(1, 1)
    assert consistency.augmented(c, u, torch.tensor(2.0)).tolist() == [7, -5]
    scale = 7.5
    torch.testing.assert_close(consistency.augmented(c, u, tensor(scale - 1)), u + scale * (c - u))


def test_distances_by_hand() -> None:
    one, other = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[3.0, 4.0], [1.0, 1.0]])
    assert consistency.l2(one, other).tolist() == [12.5, 0]
    expected = (math.sqrt(9 + 1) + math.sqrt(16 + 1)) / 2 - 1
    assert consistency.pseudo_huber(one, other, c=1).tolist() == pytest.approx([expected, 0])
    assert float(consistency.pseudo_huber(one, other, c=1e-6)[0]) == pytest.approx(3.5, rel=1e-5), "nearly l1"


def test_min_snr_weights_by_hand() -> None:
    alpha, sigma = tensor(0.8, 0.6), tensor(0.6, 0.8)
    assert consistency.min_snr(alpha, sigma, 1.0).tolist() == pytest.approx([1, 0.5625])
    assert consistency.min_snr(alpha, sigma, 5.0).tolist() == pytest.approx([16 / 9, 0.5625])


def test_moving_average_by_hand() -> None:
    average, value = {"a": tensor(1.0)}, {"a": tensor(3.0)}
    consistency.update_ema(average, value, 0.75)
    assert average["a"].tolist() == [1.5]
    consistency.update_ema(average, value, 0.0)
    assert average["a"].tolist() == [3.0]


@pytest.mark.parametrize("dim", [256, 7])
def test_the_embedding_of_w_is_that_of_the_pipelines(dim: int) -> None:
    pipeline = sd()
    w = torch.tensor([0.0, 1.0, 6.5])
    torch.testing.assert_close(
        consistency.guidance_embedding(w, dim), pipeline.get_guidance_scale_embedding(w, embedding_dim=dim)
    )
