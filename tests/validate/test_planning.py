"""Sweeps as people write them, the cells of a plan, and plans that make no sense."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lorahub.errors import UsageError
from lorahub.validate.cells import BASE, COMBINATION, STYLE, Acceleration, Plan, Sweep
from lorahub.validate.planning import figure, parse_sweep
from lorahub.validate.samplers import acceleration_of, declared
from lorahub.workspace.accelerators import recognise
from registry.records import RunSettings

TERMS = ("style", "lcm")
FAST = Acceleration("LCMScheduler")


@pytest.mark.parametrize(
    ("text", "term", "values"),
    [
        ("lcm=0.6:1.2:0.2", "lcm", (0.6, 0.8, 1.0, 1.2)),
        ("style=-1:1:1", "style", (-1.0, 0.0, 1.0)),
        ("lcm=0:1:0.3", "lcm", (0.0, 0.3, 0.6, 0.9)),
        ("lcm=1:1:1", "lcm", (1.0,)),
        ("lcm=0.5,1,1", "lcm", (0.5, 1.0)),
        (" lcm =0.5", "lcm", (0.5,)),
    ],
)
def test_a_sweep_is_read(text: str, term: str, values: tuple[float, ...]) -> None:
    assert parse_sweep(text, TERMS) == Sweep(term, values)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("lcm", "expected TERM=FROM:TO:BY"),
        ("lcm=1:2", "expected TERM=FROM:TO:BY"),
        ("other=0:1:1", "no term 'other' in the expression: it has style, lcm"),
        ("lcm=a:1:1", "'a' is no number"),
        ("lcm=0:1:0", "BY above 0"),
        ("lcm=1:0:0.1", "FROM not above TO"),
        ("lcm=0:1:0.001", "1001 values: at most 100"),
        ("lcm=0:inf:1", "inf is no coefficient"),
    ],
)
def test_a_sweep_that_cannot_be_read_says_why(text: str, error: str) -> None:
    with pytest.raises(UsageError, match=error):
        parse_sweep(text, TERMS)


def plan(**given: Any) -> Plan:
    return Plan(**{"prompts": ("a",), "steps": (2, 4), "samplers": ("ddim", "unipc")} | given)


def test_the_figure_has_base_style_and_combination() -> None:
    drawn = figure(plan(acceleration=FAST), {"style": 0.8, "lcm": 1.0}, ["lcm"], 7.5)
    rows = [(cell.row, cell.sampler, cell.steps) for cell in drawn.cells]
    own = [("ddim", 2), ("ddim", 4), ("unipc", 2), ("unipc", 4)]
    assert rows == [
        (BASE, "ddim", 25),
        *((BASE, *each) for each in own),
        (STYLE, "ddim", 25),
        *((STYLE, *each) for each in own),
        (COMBINATION, "LCMScheduler", 2),
        (COMBINATION, "LCMScheduler", 4),
    ]
    assert drawn.reference.coefficients == (("style", 0.8),)
    assert drawn.base_reference.coefficients == ()
    assert {cell.guidance for cell in drawn.cells if cell.row == COMBINATION} == {1.0}


def test_an_accelerator_alone_is_compared_with_the_base_and_a_style_alone_with_itself() -> None:
    alone = figure(plan(acceleration=FAST), {"lcm": 1.0}, ["lcm"], 7.5)
    assert alone.reference == alone.base_reference
    assert {cell.row for cell in alone.cells} == {BASE, COMBINATION}
    style = figure(plan(), {"style": 1.0}, [], 7.5)
    assert (style.reference.row, style.reference.steps) == (COMBINATION, 25)
    assert {cell.row for cell in style.cells} == {BASE, COMBINATION}


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"prompts": ()}, "prompts: expected at least one"),
        ({"seeds": (1, 1)}, "seeds: one is given twice"),
        ({"steps": (0, 2)}, "steps: expected at least 1"),
        ({"steps": (4, 25)}, "more than the 25 steps"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(given: dict[str, Any], error: str) -> None:
    with pytest.raises(UsageError, match=error):
        plan(**given)


@pytest.mark.parametrize(
    ("name", "base", "wanted"),
    [
        ("lcm-lora-sdxl", "sdxl", ("LCMScheduler", {}, 1.0, (), 4)),
        ("Hyper-SDXL-8steps-lora", "sdxl", ("DDIMScheduler", {"timestep_spacing": "trailing"}, 0.0, (), 8)),
        ("TCD-SDXL-LoRA", "sdxl", ("TCDScheduler", {"eta": 0.3}, 0.0, (), 4)),
        ("dmd2", "sdxl", ("LCMScheduler", {}, 0.0, (999, 749, 499, 249), 4)),
    ],
)
def test_an_accelerator_is_drawn_as_its_publishers_say(name: str, base: str, wanted: tuple[object, ...]) -> None:
    found = recognise([name], base)
    assert found is not None
    fast = acceleration_of(found.run, name)
    assert (fast.scheduler, dict(fast.arguments), fast.guidance, fast.timesteps, fast.steps) == wanted
    assert json.loads(json.dumps(plan(acceleration=fast).to_json()))["acceleration"]["source"] == name


def test_an_accelerator_without_a_scheduler_is_refused() -> None:
    with pytest.raises(UsageError, match="not with which scheduler"):
        acceleration_of(RunSettings(), "fast")


def test_an_accelerator_is_declared_by_its_family() -> None:
    term, fast = declared("a=b=lcm", ["a=b", "style"])
    assert (term, fast.scheduler, fast.steps) == ("a=b", "LCMScheduler", 4)
    for text, error in (("other=lcm", "a term of the expression"), ("style=fast", "no family 'fast'")):
        with pytest.raises(UsageError, match=error):
            declared(text, ["style"])
