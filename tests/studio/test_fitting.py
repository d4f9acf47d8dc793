"""The training loop: seeded, checkpointed, and the same whether or not it was interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lorahub.errors import ConflictError, VerificationError
from lorahub.studio.fitting import Loss, Report, Schedule, fit

SCHEDULE = Schedule(steps=20, rate=0.05, ema=0.9, every=5)


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(4, 1)


def loss_of(module: nn.Module) -> Loss:
    def loss(generator: torch.Generator) -> Tensor:
        x = torch.randn(16, 4, generator=generator)
        return (module(x) - x.sum(1, keepdim=True)).square().mean()

    return loss


def silent(done: int, steps: int, loss: float) -> None: ...


def run(place: Path, report: Report = silent, schedule: Schedule = SCHEDULE, seed: int = 1) -> list[Tensor]:
    module = model()
    fit({"module": module}, loss_of(module), schedule, place, seed=seed, report=report)
    return [weight.detach().clone() for weight in module.parameters()]


def stopping(at: int) -> Report:
    def report(done: int, steps: int, loss: float) -> None:
        if done == at:
            raise KeyboardInterrupt

    return report


def test_it_learns(tmp_path: Path) -> None:
    told: list[tuple[int, int, float]] = []
    weight, bias = run(tmp_path / "a.pt", lambda *facts: told.append(facts), Schedule(300, 0.05, ema=0.9))
    assert torch.allclose(weight, torch.ones(1, 4), atol=0.02)
    assert torch.allclose(bias, torch.zeros(1), atol=0.02)
    assert [facts[:2] for facts in told] == [(step, 300) for step in range(1, 301)]
    assert told[-1][2] < 0.05 * told[0][2]


@pytest.mark.parametrize("at", [1, 5, 13, 20])
def test_an_interrupted_run_ends_the_same(tmp_path: Path, at: int) -> None:
    whole = run(tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut.pt", stopping(at))
    resumed = run(tmp_path / "cut.pt")
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    first, seen = run(tmp_path / "a.pt"), []
    again = run(tmp_path / "a.pt", lambda *facts: seen.append(facts))
    assert not seen
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_the_seed_counts(tmp_path: Path) -> None:
    assert not torch.equal(run(tmp_path / "a.pt")[0], run(tmp_path / "b.pt", seed=2)[0])


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "a.pt")
    with pytest.raises(ConflictError, match="remove it to start anew"):
        run(tmp_path / "a.pt", seed=2)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    module, count = model(), 0

    def loss(generator: torch.Generator) -> Tensor:
        nonlocal count
        count += 1
        return loss_of(module)(generator) * (float("nan") if count == 8 else 1)

    with pytest.raises(VerificationError, match="the loss of step 7 is not finite"):
        fit({"module": module}, loss, SCHEDULE, tmp_path / "a.pt", seed=1, report=silent)
    assert torch.load(tmp_path / "a.pt", weights_only=True)["step"] == 5
