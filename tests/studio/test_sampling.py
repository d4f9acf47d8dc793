"""Sampling: noise that depends on the picture alone, and the schedulers that were asked for."""

from __future__ import annotations

import pytest
import torch

import lorahub as lh
from lorahub.errors import UsageError
from lorahub.studio import sampling, shipped, world
from lorahub.studio.sampling import Sampler, sample, wearing

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


@pytest.fixture(scope="module")
def pipe() -> object:
    return shipped.load()


@pytest.mark.parametrize("scheduler", sampling.SCHEDULERS)
def test_a_picture_does_not_depend_on_its_batch(pipe: object, scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = world.scenes(5, 0).prompts
    whole = sample(pipe, prompts, Sampler(scheduler, 2), seed=4)
    monkeypatch.setattr(sampling, "_BATCH", 2)
    parted = sample(pipe, prompts, Sampler(scheduler, 2), seed=4)
    assert whole.shape == (5, 3, 32, 32)
    assert torch.allclose(whole, parted, atol=1e-4)
    assert not torch.allclose(whole, sample(pipe, prompts, Sampler(scheduler, 2), seed=5), atol=1e-2)


def test_the_samplers_are_different_and_leave_the_pipeline_alone(pipe: object) -> None:
    before = pipe.scheduler
    prompts = ["red star on teal"]
    drawn = [
        sample(pipe, prompts, Sampler(name, 4, guidance)) for name in sampling.SCHEDULERS for guidance in (1.0, 2.0)
    ]
    assert pipe.scheduler is before
    for index, one in enumerate(drawn):
        for other in drawn[index + 1 :]:
            assert float((one - other).abs().max()) > 1e-3


def test_evaluations() -> None:
    assert Sampler("ddim", 4).evaluations == 4
    assert Sampler("ddim", 4, 2.0).evaluations == 8
    assert str(Sampler("dpm", 4, 2.0)) == "dpm 4 guidance 2"


def test_an_unknown_scheduler(pipe: object) -> None:
    with pytest.raises(UsageError, match="expected one of ddim, dpm, unipc, lcm"):
        sample(pipe, ["red star on teal"], Sampler("euler", 4))


def test_an_adapter_is_worn_and_taken_off(pipe: object) -> None:
    prompts = world.scenes(4, 0).prompts
    bare = sample(pipe, prompts, Sampler("ddim", 2))
    with wearing(pipe, lh.load(shipped.path("outline"))):
        assert not torch.allclose(sample(pipe, prompts, Sampler("ddim", 2)), bare, atol=0.1)
    assert torch.equal(sample(pipe, prompts, Sampler("ddim", 2)), bare)
