"""The whole way on the tiny studio: its vectors are drawn, scored and judged, and the verdicts are the expected ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import lorahub as lh
from lorahub import studio
from lorahub.validate.cells import Acceleration, Generation, Plan
from lorahub.validate.finding import Severity
from lorahub.validate.generating import Term, generate
from lorahub.validate.judges import find_judges
from lorahub.validate.verdicts import judge

PLAN = Plan(
    tuple(dict.fromkeys(studio.scenes(8, 11).prompts)),
    seeds=(0, 1, 2),
    steps=(4,),
    reference_steps=16,
    guidance=2.0,
    samplers=("ddim",),
    acceleration=Acceleration("LCMScheduler", guidance=1.0, steps=4),
)


class Features(torch.nn.Module):
    """The studio's scorer on uint8 pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.scorer = studio.scorer()

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.scorer(pictures.float() / 127.5 - 1)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return studio.load()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all, so that what two runs share is drawn once."""
    return tmp_path_factory.mktemp("pictures")


def drawn(pipe: Any, folder: Path, plan: Plan, *terms: tuple[str, float]) -> Generation:
    named = [Term(name, weight, lh.load(studio.path(name)), name == "lcm") for name, weight in terms]
    return generate(pipe, named, plan, folder, judges=find_judges(Features()))


def severities(generation: Generation) -> dict[str, Severity]:
    return {finding.check: finding.severity for finding in judge(generation)}


def test_style_and_lcm_at_four_steps_pass(pipe: Any, folder: Path) -> None:
    found = severities(drawn(pipe, folder, PLAN, ("shadow", 1.0), ("lcm", 1.0)))
    assert found["pictures.distance"] is Severity.PASS
    assert Severity.FAIL not in found.values()


def test_lcm_with_its_alpha_lost_fails(pipe: Any, folder: Path) -> None:
    found = severities(drawn(pipe, folder, PLAN, ("shadow", 1.0), ("lcm", 8.0)))
    assert found["pictures.distance"] is Severity.FAIL


def test_a_style_alone_at_two_steps_fails_on_distance(pipe: Any, folder: Path) -> None:
    found = severities(drawn(pipe, folder, replace(PLAN, steps=(2,), acceleration=None), ("shadow", 1.0)))
    assert found["pictures.distance"] is Severity.FAIL
