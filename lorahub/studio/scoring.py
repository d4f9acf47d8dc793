"""How well pictures match their prompts and a style: a small network trained on the drawn world, and distances on it.

The rule: numbers compare pictures with pictures. A share or a distance comes with a bootstrap interval, and two samplers
are compared on the same prompts and seeds, picture by picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorahub.errors import UsageError
from lorahub.studio import styles, world
from lorahub.studio.shapes import SHAPES

FEATURES = 64
ATTRIBUTES = {"shape": len(SHAPES), "colour": len(world.COLOURS), "ground": len(world.GROUNDS)}
STYLE_NAMES = (styles.PLAIN, *styles.STYLES)


class Scorer(nn.Module):
    """A convolutional network with one head for each attribute and one for the style; 32 x 32 pictures in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(3, 24, 1),
            *_convolution(24, 32, 2),
            *_convolution(32, 48, 1),
            *_convolution(48, FEATURES, 2),
            *_convolution(FEATURES, FEATURES, 1),
            *_convolution(FEATURES, FEATURES, 2),
        )
        self.project = nn.Linear(FEATURES * 16, FEATURES)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(FEATURES, count) for name, count in (ATTRIBUTES | {"style": len(STYLE_NAMES)}).items()}
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """Features, N x 64."""
        features: Tensor = self.project(self.body(pictures).flatten(1)).tanh()
        return features

    def logits(self, features: Tensor) -> dict[str, Tensor]:
        return {name: head(features) for name, head in self.heads.items()}

    def loss(self, pictures: Tensor, truth: dict[str, Tensor]) -> Tensor:
        """Mean cross-entropy, summed over the heads."""
        logits = self.logits(self(pictures))
        return torch.stack([F.cross_entropy(logits[name], truth[name]) for name in self.heads]).sum()


@dataclass(frozen=True)
class Seen:
    """What the scorer makes of N pictures: features N x 64 in float64, and for each picture what was right (0 or 1)."""

    features: Tensor
    right: dict[str, Tensor]
    """shape, colour, ground; `all` three; `style`."""

    def __len__(self) -> int:
        return len(self.features)

    def chosen(self, index: Tensor) -> Seen:
        return Seen(self.features[index], {name: right[index] for name, right in self.right.items()})

    def accuracy(self, name: str = "all") -> float:
        return float(self.right[name].mean())


@torch.no_grad()
def see(scorer: Scorer, pictures: Tensor, prompts: Sequence[str], style: str = styles.PLAIN) -> Seen:
    """Judge pictures (N x 3 x 32 x 32 in [-1, 1]) by their prompts and the style they should be in."""
    features = torch.cat([scorer(pictures[start : start + 256]) for start in range(0, len(pictures), 256)])
    wanted = torch.tensor([world.parse(prompt) for prompt in prompts])
    found = {name: logits.argmax(1) for name, logits in scorer.logits(features).items()}
    right = {name: (found[name] == wanted[:, index]).double() for index, name in enumerate(ATTRIBUTES)}
    right["all"] = torch.stack(list(right.values())).prod(0)
    right["style"] = (found["style"] == STYLE_NAMES.index(style)).double()
    return Seen(features.double(), right)


def frechet(first: Tensor, second: Tensor) -> float:
    """Fréchet distance of two sets of features, N x D and M x D in float64 (Heusel et al., arXiv 1706.08500, eq. 6).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), the trace of the root from the eigenvalues of C1 C2.
    """
    if min(len(first), len(second)) < 2:
        raise UsageError("the Fréchet distance needs at least two pictures on either side")
    means = first.mean(0) - second.mean(0)
    one, two = torch.cov(first.T), torch.cov(second.T)
    root = torch.linalg.eigvals(one @ two).real.clamp(min=0).sqrt().sum()
    return float(means @ means + one.trace() + two.trace() - 2 * root)


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def bootstrap(statistic: Callable[[Tensor], float], count: int, *, seed: int = 0, rounds: int = 200) -> Estimate:
    """The statistic of all `count` pictures, with its basic bootstrap interval (Efron and Tibshirani 1993, ch. 13).

    statistic: indices of pictures, int64 -> number. The basic interval mirrors the percentiles around the value, which
    takes out the bias that a Fréchet distance has on resampled pictures.
    """
    value = statistic(torch.arange(count))
    generator = torch.Generator().manual_seed(seed)
    resampled = torch.tensor(
        [statistic(torch.randint(count, (count,), generator=generator)) for _ in range(rounds)], dtype=torch.float64
    )
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(value, 2 * value - high, 2 * value - low)


def _convolution(channels: int, out: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, out, 3, stride, 1), nn.GroupNorm(8, out), nn.SiLU()
