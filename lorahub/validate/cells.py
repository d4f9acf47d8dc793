"""What a generation is asked for and what it gives: plan, cells, pictures, scores. Plain values, ready for JSON.

The rule: a picture is determined by its cell, prompt and seed, and the noise it starts from by the seed alone, so that
pictures of two cells can be compared one by one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lorahub.errors import UsageError

BASE, STYLE, COMBINATION = "base", "style", "combination"
"""Rows: no adapter, the terms that do not accelerate, all terms."""


@dataclass(frozen=True)
class Acceleration:
    """How an accelerated combination is drawn: a diffusers scheduler class, its arguments, and the guidance scale.

    timesteps: the noise levels it was made for, where the family fixes them; they count when their number is that of the
    steps. steps: the number it is usually drawn with, which the verdict is about. source: what says so, in words.
    """

    scheduler: str
    arguments: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    guidance: float = 1.0
    timesteps: tuple[int, ...] = ()
    steps: int | None = None
    source: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "scheduler": self.scheduler,
            "arguments": dict(self.arguments),
            "guidance": self.guidance,
            "timesteps": list(self.timesteps),
            "steps": self.steps,
            "source": self.source,
        }


@dataclass(frozen=True)
class Sweep:
    """Values that the coefficient of one term takes, in place of the one in the expression."""

    term: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Wanted:
    """What to draw, as people say it. Every cell has all prompts and seeds.

    steps: columns. reference_steps: of the many-step pictures that all others are compared with.
    guidance: of the base's own samplers; None is the pipeline's default. samplers: of `samplers.NAMES`, the first one
    draws the references; none means all that the pipeline takes. height, width: pixels, None is the pipeline's own.
    Raises UsageError for a plan without prompts, seeds or steps, or with numbers out of range.
    """

    prompts: tuple[str, ...]
    negative: str = ""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    steps: tuple[int, ...] = (1, 2, 4, 8)
    reference_steps: int = 25
    guidance: float | None = None
    samplers: tuple[str, ...] = ()
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        for what, values in (("prompts", self.prompts), ("seeds", self.seeds), ("steps", self.steps)):
            if not values:
                raise UsageError(f"{what}: expected at least one")
            if len(set(values)) != len(values):
                raise UsageError(f"{what}: one is given twice")
        if min(self.steps) < 1:
            raise UsageError(f"steps: expected at least 1, got {min(self.steps)}")
        if self.reference_steps <= max(self.steps):
            raise UsageError(
                f"reference steps: expected more than the {max(self.steps)} steps that are compared with them, "
                f"got {self.reference_steps}"
            )


@dataclass(frozen=True)
class Plan(Wanted):
    """What to draw of an expression whose terms are known.

    acceleration: how the combination is drawn; None when no term accelerates, and then the base's samplers draw it.
    """

    acceleration: Acceleration | None = None
    sweep: Sweep | None = None

    def to_json(self) -> dict[str, Any]:
        """Every field by name."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        acceleration = None if self.acceleration is None else self.acceleration.to_json()
        return plain | {"acceleration": acceleration, "sweep": None if self.sweep is None else asdict(self.sweep)}


@dataclass(frozen=True)
class Cell:
    """One square of the figure. sampler: a name of `samplers.NAMES`, or the acceleration's scheduler class.

    coefficients: (operand as the expression names it, weight) of what is added to the base; empty for the base itself.
    """

    row: str
    sampler: str
    steps: int
    guidance: float
    coefficients: tuple[tuple[str, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"coefficients": dict(self.coefficients)}


@dataclass(frozen=True)
class Picture:
    """One picture on the disk. seconds: what drawing it took; its share where several were drawn together.

    finite: whether every pixel was a number; one that was not is black.
    """

    cell: Cell
    prompt: str
    seed: int
    path: Path
    seconds: float
    finite: bool = True

    def to_json(self) -> dict[str, Any]:
        """All but the cell, under which `Generation.to_json` lists it."""
        return {key: getattr(self, key) for key in ("prompt", "seed", "seconds", "finite")} | {"path": str(self.path)}


@dataclass(frozen=True)
class Score:
    """One number of one cell, or the reason why there is none.

    name: a key of `scores.SCORES`, which says unit, direction and meaning. value: mean over the pictures, or the number of
    the whole set. spread: standard deviation of the number over seeds. low, high: 95 % bootstrap interval.
    values: of each picture, in the order of `Generation.of`; empty where only the set has a number.
    """

    name: str
    cell: Cell
    value: float | None
    spread: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Generation:
    """The figure: its cells in drawing order, their pictures and scores, and what drawing them cost.

    plan: with guidance and samplers filled in. pipeline: class name. base: what was loaded.
    reference: the many-step cell that distances are measured to; base_reference: that of the bare base.
    placement: device, dtype and what was done to fit the memory. peak_memory: bytes of the device, None where that
    cannot be had. seconds_per_step: row -> mean seconds for one step of one picture. kept: whether the pictures stay on the
    disk when this is gone.
    """

    plan: Plan
    base: str
    pipeline: str
    pictures: tuple[Picture, ...]
    scores: tuple[Score, ...]
    reference: Cell
    base_reference: Cell
    placement: Mapping[str, Any]
    peak_memory: int | None
    seconds_per_step: Mapping[str, float]
    kept: bool = True

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every cell once, in drawing order."""
        return tuple(dict.fromkeys(picture.cell for picture in self.pictures))

    def of(self, cell: Cell) -> tuple[Picture, ...]:
        """The pictures of a cell: prompts in the plan's order, and within each the seeds."""
        return tuple(picture for picture in self.pictures if picture.cell == cell)

    def score(self, cell: Cell, name: str) -> Score | None:
        """The score of a cell by name."""
        return next((score for score in self.scores if score.cell == cell and score.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """Every field by name; cells are listed once, each with its pictures and its scores by name.

        The path of a picture that is not kept is None.
        """
        cells, lost = [], {} if self.kept else {"path": None}
        for cell in self.cells:
            scores = {score.name: _numbers(score) for score in self.scores if score.cell == cell}
            cells.append(cell.to_json() | {"pictures": [p.to_json() | lost for p in self.of(cell)], "scores": scores})
        return {
            "plan": self.plan.to_json(),
            "base": self.base,
            "pipeline": self.pipeline,
            "cells": cells,
            "reference": self.reference.to_json(),
            "base_reference": self.base_reference.to_json(),
            "placement": dict(self.placement),
            "peak_memory": self.peak_memory,
            "seconds_per_step": dict(self.seconds_per_step),
        }


def _numbers(score: Score) -> dict[str, Any]:
    numbers = {key: _finite(getattr(score, key)) for key in ("value", "spread", "low", "high")}
    return numbers | {"reason": score.reason, "values": [_finite(value) for value in score.values]}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
