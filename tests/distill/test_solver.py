"""The solvers against the steps of diffusers' schedulers, and against an ODE whose solution is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lorahub.distill.consistency import predicted_epsilon, predicted_x_0
from lorahub.distill.solver import SOLVERS, Schedule, ddim_step, dpm_solver_pp_step, timesteps
from lorahub.errors import UsageError
from tests.distill.tiny import scheduler

KINDS = ("epsilon", "v_prediction")


def test_the_schedule_is_the_schedulers() -> None:
    schedule = Schedule.of(scheduler("v_prediction"))
    alpha, sigma = schedule.at(torch.tensor([0, 999]))
    assert alpha.shape == sigma.shape == (2, 1, 1, 1)
    torch.testing.assert_close(alpha.flatten() ** 2, scheduler("epsilon").alphas_cumprod[[0, 999]])
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(2, 1, 1, 1))
    assert schedule.prediction_type == "v_prediction"


def test_flow_matching_is_refused() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    with pytest.raises(UsageError, match="FlowMatchEulerDiscreteScheduler has no alphas_cumprod"):
        Schedule.of(FlowMatchEulerDiscreteScheduler())


@pytest.mark.parametrize("steps", [50, 25, 1])
def test_the_grid_is_the_one_lcm_scheduler_samples_on(steps: int) -> None:
    from diffusers import LCMScheduler

    sampler = LCMScheduler(original_inference_steps=steps)
    sampler.set_timesteps(steps)
    assert timesteps(steps).tolist() == sampler.timesteps.flip(0).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_ddim_step_is_that_of_ddim_scheduler(kind: str) -> None:
    sampler = scheduler(kind)
    sampler.set_timesteps(50)
    schedule = Schedule.of(sampler)
    x, output = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3)
    t = sampler.timesteps[10]
    s = t - 20
    here = schedule.at(t[None])
    estimate = (predicted_x_0(output, x, *here, kind), predicted_epsilon(output, x, *here, kind))
    torch.testing.assert_close(
        ddim_step(*estimate, *schedule.at(s[None])), sampler.step(output, t, x).prev_sample, rtol=1e-5, atol=1e-5
    )


def multistep(kind: str, times: list[int], order: int = 1) -> Any:
    """A DPM-Solver++ scheduler of diffusers that goes through these timesteps."""
    from diffusers import DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler

    maker = DPMSolverMultistepScheduler if order == 1 else DPMSolverSinglestepScheduler
    config = {
        **scheduler(kind).config,
        "solver_order": order,
        "final_sigmas_type": "sigma_min",
        "solver_type": "midpoint",
    }
    sampler = maker.from_config(config, lower_order_final=False)
    products = scheduler(kind).alphas_cumprod[times].double()
    sampler.sigmas = ((1 - products) / products).sqrt()
    sampler.set_begin_index(0)
    return sampler


@pytest.mark.parametrize("kind", KINDS)
def test_a_first_order_step_is_that_of_dpm_solver(kind: str) -> None:
    schedule = Schedule.of(scheduler(kind))
    x, x_0 = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3)
    t, s = (schedule.at(torch.tensor([time])) for time in (499, 479))
    sampler = multistep(kind, [499, 479])
    sampler._step_index = 0
    expected = sampler.dpm_solver_first_order_update(x_0, sample=x).float()
    torch.testing.assert_close(dpm_solver_pp_step(x, x_0, x_0, t, t, s), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_order_step_is_that_of_dpm_solver(kind: str) -> None:
    schedule = Schedule.of(scheduler(kind))
    x, x_0, x_0_mid = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3)
    times = [499, 420, 299]
    sampler = multistep(kind, times, order=2)
    sampler._step_index = 1
    expected = sampler.singlestep_dpm_solver_second_order_update([x_0, x_0_mid], sample=x).float()
    t, mid, s = (schedule.at(torch.tensor([time])) for time in times)
    torch.testing.assert_close(dpm_solver_pp_step(x, x_0, x_0_mid, t, mid, s), expected, rtol=1e-4, atol=1e-4)


def test_the_midpoint_halves_the_log_snr() -> None:
    schedule = Schedule.of(scheduler("epsilon"))
    t, s = torch.tensor([999, 500, 1]), torch.tensor([800, 100, 0])
    middle = schedule.midpoint(t, s)

    def log_snr(time: Tensor) -> Tensor:
        alpha, sigma = schedule.at(time)
        return (alpha / sigma).log().flatten()

    assert ((s <= middle) & (middle <= t)).all()
    wanted = (log_snr(t) + log_snr(s)) / 2
    for other in (middle[:2] - 1, middle[:2] + 1):
        assert ((log_snr(middle) - wanted)[:2].abs() <= (log_snr(other) - wanted[:2]).abs()).all()


def gaussian(schedule: Schedule, spread: float) -> Any:
    """The exact network for data N(0, spread²), whose probability-flow ODE scales x by sqrt(α²spread² + σ²)."""

    def estimate(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = schedule.at(t)
        variance = alpha**2 * spread**2 + sigma**2
        return alpha * spread**2 * x / variance, sigma * x / variance

    return estimate


def exact(schedule: Schedule, spread: float, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    sizes = [(schedule.at(time)[0] ** 2 * spread**2 + schedule.at(time)[1] ** 2).sqrt() for time in (t, s)]
    return x * sizes[1] / sizes[0]


def test_solvers_follow_a_known_path() -> None:
    schedule = Schedule.of(scheduler("epsilon"))
    x, t, s = torch.ones(3, 1, 1, 1), torch.tensor([999, 499, 199]), torch.tensor([899, 399, 99])
    truth = exact(schedule, 0.5, x, t, s)
    errors = {
        name: float((solve(gaussian(schedule, 0.5), schedule, x, t, s) - truth).abs().max())
        for name, solve in SOLVERS.items()
    }
    assert errors["ddim"] < 0.05
    assert errors["dpmsolver++"] < errors["ddim"] / 5, "the second order pays"


def test_steps_without_a_timestep_between_are_ddim_steps() -> None:
    schedule = Schedule.of(scheduler("epsilon"))
    x, t, s = torch.randn(1, 4, 2, 2), torch.tensor([400]), torch.tensor([400])
    here = schedule.at(t)
    x_0 = torch.randn_like(x)
    torch.testing.assert_close(dpm_solver_pp_step(x, x_0, x_0 + 1, here, here, schedule.at(s)), x)
