"""The teacher's ODE solvers Ψ: from x at t one (skipping) step down to s < t along the probability-flow ODE.

The rule: pure functions of tensors; the network is a function (x, t) -> (x̂_0, ε̂), so guidance is no concern of a solver.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorahub.errors import UsageError

Estimate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x [B, C, h, w], t [B]) -> (x̂_0, ε̂)."""


@dataclass(frozen=True)
class Schedule:
    """The noise schedule of a base: α_t and σ_t for every training timestep, float32 [T], and what its U-Net predicts."""

    alphas: Tensor
    sigmas: Tensor
    prediction_type: str

    @classmethod
    def of(cls, scheduler: Any) -> Schedule:
        """The schedule that a diffusers scheduler was configured with.

        Raises UsageError for one without `alphas_cumprod` (flow matching), where these formulas do not hold.
        """
        products = getattr(scheduler, "alphas_cumprod", None)
        if products is None:
            raise UsageError(
                f"{type(scheduler).__name__} has no alphas_cumprod: only diffusion models with discrete timesteps "
                "(SD 1.x, SD 2.x, SDXL and their like) can be distilled"
            )
        products = torch.as_tensor(products, dtype=torch.float64).cpu()
        return cls(products.sqrt().float(), (1 - products).sqrt().float(), scheduler.config.prediction_type)

    def to(self, device: torch.device | str) -> Schedule:
        """The same on another device."""
        return Schedule(self.alphas.to(device), self.sigmas.to(device), self.prediction_type)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(α_t, σ_t) of timesteps t [B], each [B, 1, 1, 1]."""
        return self.alphas[t].reshape(-1, 1, 1, 1), self.sigmas[t].reshape(-1, 1, 1, 1)

    def midpoint(self, t: Tensor, s: Tensor) -> Tensor:
        """The timestep from s to t whose log-SNR λ = log(α/σ) is nearest to (λ_t + λ_s)/2; t, s and the result are [B]."""
        tiny = torch.finfo(torch.float32).tiny
        lambdas = (self.alphas.clamp_min(tiny) / self.sigmas).log()
        middle = (lambdas[t] + lambdas[s]) / 2
        return (lambdas[None] - middle[:, None]).abs().argmin(1)


def timesteps(steps: int, train_steps: int = 1000) -> Tensor:
    """The solver's grid i k - 1, i = 1..steps, k = train_steps // steps (int64, ascending), that LCMScheduler samples on."""
    return torch.arange(1, steps + 1) * (train_steps // steps) - 1


def ddim_step(x_0: Tensor, epsilon: Tensor, alpha_s: Tensor, sigma_s: Tensor) -> Tensor:
    """Deterministic DDIM: α_s x̂_0 + σ_s ε̂ (arXiv 2010.02502, equation 12 with η = 0)."""
    return alpha_s * x_0 + sigma_s * epsilon


def dpm_solver_pp_step(
    x: Tensor,
    x_0: Tensor,
    x_0_mid: Tensor,
    t: tuple[Tensor, Tensor],
    mid: tuple[Tensor, Tensor],
    s: tuple[Tensor, Tensor],
) -> Tensor:
    """The second-order single step DPM-Solver++(2S) from x at t to s (arXiv 2211.01095, algorithm 1).

    x_0, x_0_mid: the estimates at t and at the middle time; t, mid, s: (α, σ) at the three times.
    With λ = log(α/σ), h = λ_s - λ_t, r = (λ_mid - λ_t) / h:
    (σ_s/σ_t) x - α_s (e^-h - 1) (D_0 + D_1/2), D_0 = x_0, D_1 = (x_0_mid - x_0) / r.
    Where mid is t (no timestep lies between), it is the first-order step, which is DDIM.
    """
    lambda_t, lambda_mid, lambda_s = ((alpha / sigma).log() for alpha, sigma in (t, mid, s))
    h = lambda_s - lambda_t
    r = (lambda_mid - lambda_t) / h
    d_1 = torch.where(r > 0, (x_0_mid - x_0) / torch.where(r > 0, r, 1.0), 0.0)
    return (s[1] / t[1]) * x - s[0] * torch.expm1(-h) * (x_0 + d_1 / 2)


def ddim(estimate: Estimate, schedule: Schedule, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Ψ_DDIM: one evaluation of the network."""
    return ddim_step(*estimate(x, t), *schedule.at(s))


def dpm_solver_pp(estimate: Estimate, schedule: Schedule, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Ψ_DPM-Solver++(2S): two evaluations of the network, the second halfway in log-SNR."""
    middle = schedule.midpoint(t, s)
    x_0, epsilon = estimate(x, t)
    # The first-order step to the middle time is DDIM.
    x_0_mid, _ = estimate(ddim_step(x_0, epsilon, *schedule.at(middle)), middle)
    return dpm_solver_pp_step(x, x_0, x_0_mid, schedule.at(t), schedule.at(middle), schedule.at(s))


SOLVERS: dict[str, Callable[[Estimate, Schedule, Tensor, Tensor, Tensor], Tensor]] = {
    "ddim": ddim,
    "dpmsolver++": dpm_solver_pp,
}
