"""Scores: the Fréchet distance against torchmetrics and against algebra, intervals against theory, the scorer's eyes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lorahub.errors import UsageError
from lorahub.studio import scoring, shipped, world


class Features(nn.Module):
    """For torchmetrics, which hands over pictures and wants to know how many features come back."""

    num_features = scoring.FEATURES

    def __init__(self, scorer: scoring.Scorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, pictures: Tensor) -> Tensor:
        return self.scorer(pictures.float())


@pytest.fixture(scope="module")
def scorer() -> scoring.Scorer:
    return shipped.scorer()


def test_the_distance_is_that_of_torchmetrics(scorer: scoring.Scorer) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    one, other = world.draw(world.scenes(300, 1)), world.draw(world.scenes(300, 2), "outline")
    theirs = FrechetInceptionDistance(Features(scorer), normalize=True, input_img_size=(3, 32, 32))
    theirs.used_custom_model = True
    theirs.update(one, real=True)
    theirs.update(other, real=False)
    with torch.no_grad():
        ours = scoring.frechet(scorer(one).double(), scorer(other).double())
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-3)
    assert ours > 1


def test_the_distance_of_known_gaussians() -> None:
    """Diagonal covariances commute: the distance is |m|^2 + sum of (s - t)^2."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(5000, 3, generator=generator, dtype=torch.float64)
    noise -= noise.mean(0)
    noise = noise @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(noise.T))).T  # exactly white
    scale, shift = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64), torch.tensor([3.0, 0, -1], dtype=torch.float64)
    assert scoring.frechet(noise, noise) == pytest.approx(0, abs=1e-9)
    assert scoring.frechet(noise * scale + shift, noise) == pytest.approx(10 + 1 + 0.25, rel=1e-9)
    with pytest.raises(UsageError, match="at least two pictures"):
        scoring.frechet(noise[:1], noise)


def test_the_interval_of_a_mean() -> None:
    """1.96 standard errors to either side, give or take the chance of 400 rounds."""
    data = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = scoring.bootstrap(lambda index: float(data[index].mean()), 400, rounds=400)
    half = 1.96 * float(data.std()) / math.sqrt(400)
    assert found.value == float(data.mean())
    assert found.low == pytest.approx(found.value - half, abs=0.25 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.25 * half)
    assert found == scoring.bootstrap(lambda index: float(data[index].mean()), 400, rounds=400)


@pytest.mark.parametrize("style", scoring.STYLE_NAMES)
def test_the_scorer_sees_what_was_drawn(scorer: scoring.Scorer, style: str) -> None:
    scenes = world.scenes(300, 77)
    seen = scoring.see(scorer, world.draw(scenes, style), scenes.prompts, style)
    assert seen.accuracy("all") > 0.95
    assert seen.accuracy("style") > 0.98
    assert seen.features.shape == (300, scoring.FEATURES)


def test_the_scorer_is_not_easily_pleased(scorer: scoring.Scorer) -> None:
    scenes = world.scenes(300, 77)
    other = world.scenes(300, 78)
    seen = scoring.see(scorer, world.draw(scenes), other.prompts, "outline")
    assert seen.accuracy("all") < 0.05
    assert seen.accuracy("style") < 0.05
    assert seen.accuracy("colour") == pytest.approx(1 / 6, abs=0.1)
