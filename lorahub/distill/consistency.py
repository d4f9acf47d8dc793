"""The formulas of latent consistency distillation as pure functions, named after the symbols of the papers.

LCM: Luo et al. 2023, arXiv 2310.04378; LCM-LoRA: arXiv 2311.05556. Noise schedule: x_t = α_t x_0 + σ_t ε. Arguments that
belong to a sample (t, α, σ, w, weights) have the shape [B, 1, 1, 1] or broadcast to x [B, C, h, w].
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lorahub.errors import UsageError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def x_t(x_0: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The forward process: α x_0 + σ ε."""
    return alpha * x_0 + sigma * epsilon


def c_skip(t: Tensor, *, sigma_data: float = 0.5, timestep_scaling: float = 10.0) -> Tensor:
    """σ_data² / (τ² + σ_data²), τ = timestep_scaling · t: how much of the input a consistency function keeps; 1 at t = 0."""
    tau = timestep_scaling * t
    return sigma_data**2 / (tau**2 + sigma_data**2)


def c_out(t: Tensor, *, sigma_data: float = 0.5, timestep_scaling: float = 10.0) -> Tensor:
    """τ / sqrt(τ² + σ_data²), τ = timestep_scaling · t: how much of the prediction it takes; 0 at t = 0."""
    tau = timestep_scaling * t
    return tau / (tau**2 + sigma_data**2) ** 0.5


def predicted_x_0(output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, prediction_type: str) -> Tensor:
    """x̂_0 from what the network answers for x = x_t.

    epsilon: (x - σ ε) / α; v_prediction: α x - σ v; sample: the answer itself. Raises UsageError for another type.
    """
    if prediction_type == "epsilon":
        return (x - sigma * output) / alpha
    if prediction_type == "v_prediction":
        return alpha * x - sigma * output
    if prediction_type == "sample":
        return output
    raise _unknown(prediction_type)


def predicted_epsilon(output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, prediction_type: str) -> Tensor:
    """ε̂ from what the network answers for x = x_t.

    epsilon: the answer itself; v_prediction: α v + σ x; sample: (x - α x_0) / σ. Raises UsageError for another type.
    """
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
        return alpha * output + sigma * x
    if prediction_type == "sample":
        return (x - alpha * output) / sigma
    raise _unknown(prediction_type)


def _unknown(prediction_type: str) -> UsageError:
    return UsageError(f"no such prediction type: {prediction_type!r}; expected one of {', '.join(PREDICTION_TYPES)}")


def augmented(conditional: Tensor, unconditional: Tensor, w: Tensor) -> Tensor:
    """Guidance in the form of the LCM paper: c + w (c - u); w = 0 is none, the usual guidance scale is w + 1."""
    return conditional + w * (conditional - unconditional)


def f(x: Tensor, x_0: Tensor, skip: Tensor, out: Tensor) -> Tensor:
    """The consistency function c_skip(t) x_t + c_out(t) x̂_0, which is the identity at t = 0."""
    return skip * x + out * x_0


def l2(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of each sample: [B, ...] -> [B]."""
    return (prediction - target).square().flatten(1).mean(1)


def pseudo_huber(prediction: Tensor, target: Tensor, c: float = 0.001) -> Tensor:
    """Mean of sqrt(d² + c²) - c over the elements of each sample: [B, ...] -> [B] (arXiv 2310.14189, by element)."""
    return ((prediction - target).square() + c**2).sqrt().sub(c).flatten(1).mean(1)


def min_snr(alpha: Tensor, sigma: Tensor, gamma: float) -> Tensor:
    """min(SNR, γ), SNR = α²/σ²: the weight of a loss between estimates of x_0 (arXiv 2303.09556, section 3.4)."""
    return (alpha / sigma).square().clamp(max=gamma)


@torch.no_grad()
def update_ema(theta_minus: Mapping[str, Tensor], theta: Mapping[str, Tensor], mu: float) -> None:
    """θ⁻ <- μ θ⁻ + (1 - μ) θ, in place."""
    for name, average in theta_minus.items():
        average.lerp_(theta[name].detach().to(average.dtype), 1 - mu)


def guidance_embedding(w: Tensor, dim: int) -> Tensor:
    """The Fourier features of 1000 w that a U-Net conditioned on w is given: [B] -> [B, dim], float32.

    As the LCM pipelines of diffusers compute them: sines of half the frequencies 10000^(-i / (dim/2 - 1)), then cosines.
    """
    half = dim // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float32, device=w.device) * -(math.log(10000.0) / (half - 1))
    )
    angles = 1000.0 * w.float()[:, None] * frequencies
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim % 2))
