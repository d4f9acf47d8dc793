"""One step of algorithm 1 of arXiv 2310.04378, and its relatives: the loss of a batch, for every mode.

The rule: everything random is drawn by `Draw.of` from (seed, number of the batch); the rest is a function of it, so a run
can be taken up at any step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lorahub.distill import consistency
from lorahub.distill.conditioning import Conditioning
from lorahub.distill.models import Networks
from lorahub.distill.settings import Settings
from lorahub.distill.solver import SOLVERS, Schedule, ddim_step, timesteps

Network = Callable[[Tensor, Tensor, Conditioning, Tensor | None], Tensor]


@dataclass(frozen=True)
class Draw:
    """The random numbers of one batch of B: t = t_{n+k}, t_n = t - k, s for trajectory consistency, w, ε, dropped prompts."""

    t: Tensor
    t_n: Tensor
    s: Tensor
    w: Tensor
    epsilon: Tensor
    dropped: Tensor

    @classmethod
    def of(cls, latents: Tensor, settings: Settings, train_steps: int, number: int) -> Draw:
        """Those of batch `number`. They are drawn on the CPU, so that every device trains on the same ones."""
        random = torch.Generator().manual_seed(_mixed(settings.seed, number))
        size = len(latents)
        grid = timesteps(settings.solver_steps, train_steps)
        t = grid[torch.randint(len(grid), (size,), generator=random)]
        t_n = (t - train_steps // settings.solver_steps).clamp_min(0)
        s = (torch.rand(size, generator=random) * (t_n + 1)).long()
        w = settings.w_min + (settings.w_max - settings.w_min) * torch.rand(size, generator=random)
        epsilon = torch.randn(latents.shape, generator=random)
        dropped = torch.rand(size, generator=random) < settings.drop_prompts
        return cls(*(drawn.to(latents.device) for drawn in (t, t_n, s, w, epsilon, dropped)))


def _mixed(seed: int, number: int) -> int:
    """A seed for each pair, without the collisions of a sum (multiplier of splitmix64)."""
    return ((seed + 1) * 0x9E3779B97F4A7C15 ^ number) % 2**63


@dataclass(frozen=True)
class Distillation:
    """What the steps of a run share. `student` is the (possibly wrapped) module that gradients flow through."""

    networks: Networks
    student: Network
    schedule: Schedule
    settings: Settings

    def loss(self, z: Tensor, c: Conditioning, u: Conditioning, number: int) -> Tensor:
        """The loss of latents z [B, C, h, w'] under condition c; u is the condition of no prompt. A scalar."""
        draw = Draw.of(z, self.settings, len(self.schedule.alphas), number)
        c = u.where(draw.dropped, c)
        x = consistency.x_t(z, draw.epsilon, *self.schedule.at(draw.t))
        prediction, target = MODES[self.settings.mode](self, x, z, c, u, draw)
        loss = self._distance(prediction, target)
        if self.settings.min_snr:
            loss = loss * consistency.min_snr(*self.schedule.at(draw.t), self.settings.min_snr).flatten()
        return loss.mean()

    def consistency(self, x: Tensor, z: Tensor, c: Conditioning, u: Conditioning, draw: Draw) -> tuple[Tensor, Tensor]:
        """Latent consistency distillation: f_θ(x at t_{n+k}) is to be f_θ⁻(Ψ's estimate of x at t_n)."""
        x_n = self._solve(x, c, u, draw)
        target = self.f(self.networks.target, x_n, draw.t_n, c, draw.w)
        return self.f(self.student, x, draw.t, c, draw.w), target

    def fine_tuning(self, x: Tensor, z: Tensor, c: Conditioning, u: Conditioning, draw: Draw) -> tuple[Tensor, Tensor]:
        """Latent consistency fine-tuning (algorithm 4): x at t_n is the image under the same noise, without a teacher."""
        x_n = consistency.x_t(z, draw.epsilon, *self.schedule.at(draw.t_n))
        target = self.f(self.networks.target, x_n, draw.t_n, c, draw.w)
        return self.f(self.student, x, draw.t, c, draw.w), target

    def guided(self, x: Tensor, z: Tensor, c: Conditioning, u: Conditioning, draw: Draw) -> tuple[Tensor, Tensor]:
        """Stage one of guided distillation (arXiv 2210.03142): x̂_0 of a student told w is to be the guided teacher's."""
        target, _ = self._teach(x, draw.t, c, u, draw.w)
        return self._estimate(self.student, x, draw.t, c, draw.w)[0], target

    def trajectory(self, x: Tensor, z: Tensor, c: Conditioning, u: Conditioning, draw: Draw) -> tuple[Tensor, Tensor]:
        """Trajectory consistency distillation (arXiv 2402.19159): the jumps from t_{n+k} and from t_n to s are to agree."""
        x_n = self._solve(x, c, u, draw)
        at_s = self.schedule.at(draw.s)
        target = ddim_step(*self._estimate(self.networks.target, x_n, draw.t_n, c, draw.w), *at_s)
        return ddim_step(*self._estimate(self.student, x, draw.t, c, draw.w), *at_s), target

    def f(self, network: Network, x: Tensor, t: Tensor, c: Conditioning, w: Tensor | None = None) -> Tensor:
        """The consistency function of a network: c_skip(t) x + c_out(t) x̂_0."""
        scales = {"sigma_data": self.settings.sigma_data, "timestep_scaling": self.settings.timestep_scaling}
        time = t.reshape(-1, 1, 1, 1).float()
        x_0, _ = self._estimate(network, x, t, c, w)
        return consistency.f(x, x_0, consistency.c_skip(time, **scales), consistency.c_out(time, **scales))

    @torch.no_grad()
    def _solve(self, x: Tensor, c: Conditioning, u: Conditioning, draw: Draw) -> Tensor:
        """Ψ: x at t_n on the path of the augmented probability-flow ODE through x at t_{n+k}."""
        w = None if self.settings.mode == "cd" else draw.w
        solve = SOLVERS[self.settings.solver]
        return solve(lambda x, t: self._teach(x, t, c, u, w), self.schedule, x, draw.t, draw.t_n)

    def _teach(self, x: Tensor, t: Tensor, c: Conditioning, u: Conditioning, w: Tensor | None) -> tuple[Tensor, Tensor]:
        """(x̂_0, ε̂) of the teacher under guidance w, or without any."""
        output = self.networks.teacher(x, t, c)
        if w is not None:
            # x̂_0 and ε̂ are linear in the output, so guiding it guides both.
            output = consistency.augmented(output, self.networks.teacher(x, t, u), w.reshape(-1, 1, 1, 1))
        return self._estimates(output, x, t)

    def _estimate(
        self, network: Network, x: Tensor, t: Tensor, c: Conditioning, w: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return self._estimates(network(x, t, c, w), x, t)

    def _estimates(self, output: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x̂_0, ε̂) from an answer of a network."""
        alpha, sigma = self.schedule.at(t)
        kind = self.schedule.prediction_type
        return (
            consistency.predicted_x_0(output, x, alpha, sigma, kind),
            consistency.predicted_epsilon(output, x, alpha, sigma, kind),
        )

    def _distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        if self.settings.loss == "l2":
            return consistency.l2(prediction, target)
        return consistency.pseudo_huber(prediction, target, self.settings.huber_c)


Loss = Callable[[Distillation, Tensor, Tensor, Conditioning, Conditioning, Draw], tuple[Tensor, Tensor]]

MODES: dict[str, Loss] = {
    "lora": Distillation.consistency,
    "full": Distillation.consistency,
    "cd": Distillation.consistency,
    "lcf": Distillation.fine_tuning,
    "guided": Distillation.guided,
    "tcd": Distillation.trajectory,
}
"""mode -> (prediction, target) of a batch."""
