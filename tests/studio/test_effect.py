"""The paper's equation on the shipped weights: style + LCM draws in the style in one step, and each way to get the sum
wrong shows. Fixed seeds, generous margins; the full measurement is `benchmarks/studio.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

import lorahub as lh
from lorahub.studio import Sampler, draw, frechet, load, path, sample, scenes, scorer, see, wearing
from lorahub.studio.models import GUIDANCE
from lorahub.studio.scoring import Seen

STYLES = ("shadow", "halftone")
ONE = Sampler("lcm", 1)
SCENES = scenes(64, 11)
MARGIN = 0.75
"""What is right is at least a quarter nearer to the style than anything that is wrong: measured are 0.3 to 0.6."""

Wrong = Callable[[lh.Adapter, lh.Adapter], lh.Adapter]
WRONG: dict[str, Wrong] = {
    "λ2 ignored": lambda style, lcm: style,
    "λ1 ignored": lambda style, lcm: lcm,
    "sign flipped": lambda style, lcm: style - lcm,
    "alpha lost, rank 16 taken for the divisor": lambda style, lcm: style + lcm / 16,
    "alpha lost, scale 1/8 taken for 1": lambda style, lcm: style + 8 * lcm,
}


@cache
def vector(name: str) -> lh.Adapter:
    return lh.load(path(name))


@cache
def studio() -> tuple[Any, Any]:
    return load(), scorer()


def drawn(adapter: lh.Adapter, style: str, sampler: Sampler = ONE) -> Seen:
    pipe, judge = studio()
    with wearing(pipe, adapter):
        return see(judge, sample(pipe, SCENES.prompts, sampler, seed=2), SCENES.prompts, style)


def away(seen: Seen, style: str) -> float:
    """Distance from what the style looks like when it is drawn by formula."""
    return frechet(seen.features, see(studio()[1], draw(SCENES, style), SCENES.prompts, style).features)


@cache
def right(style: str) -> Seen:
    return drawn(vector(style) + vector("lcm"), style)


@pytest.mark.parametrize("style", STYLES)
def test_one_step_has_the_colours_and_the_style(style: str) -> None:
    assert right(style).accuracy("colour") > 0.9
    assert right(style).accuracy("ground") > 0.9
    assert right(style).accuracy("style") > 0.4


@pytest.mark.parametrize(
    ("style", "steps", "guidance"),
    [("shadow", 2, 1.0), ("shadow", 2, GUIDANCE), ("shadow", 4, 1.0), ("stripes", 2, 1.0), ("stripes", 2, GUIDANCE)],
)
def test_few_steps_draw_better_than_ddim_with_as_many(style: str, steps: int, guidance: float) -> None:
    """Whether DDIM is guided or not, its pictures are farther from the style, and wrong more often."""
    ours = drawn(vector(style) + vector("lcm"), style, Sampler("lcm", steps))
    theirs = drawn(vector(style), style, Sampler("ddim", steps, guidance))
    assert away(ours, style) < 0.85 * away(theirs, style)
    assert ours.accuracy() > theirs.accuracy()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_sum_is_farther_from_the_style(style: str, wrong: str) -> None:
    seen = drawn(WRONG[wrong](vector(style), vector("lcm")), style)
    assert away(right(style), style) < MARGIN * away(seen, style)


def test_half_the_rank_keeps_the_effect() -> None:
    half = lh.truncate(vector("shadow") + vector("lcm"), lh.fixed(12))
    alone = away(drawn(vector("shadow"), "shadow"), "shadow")
    assert away(drawn(half, "shadow"), "shadow") < MARGIN * alone


def test_the_scheduler_counts() -> None:
    """Of the other samplers with as many steps none is as near."""
    both = vector("stripes") + vector("lcm")
    own = away(drawn(both, "stripes", Sampler("lcm", 4)), "stripes")
    assert own < 0.85 * away(drawn(both, "stripes", Sampler("ddim", 4)), "stripes")


def test_the_file_of_the_sum_draws_the_same(tmp_path: Any) -> None:
    """Through a file and diffusers' own loader, instead of attaching the vector."""
    pipe, _ = studio()
    both = 0.8 * vector("shadow") + 1.0 * vector("lcm")
    lh.save(both, tmp_path / "fast.safetensors", format="diffusers", dtype="fp32")
    with wearing(pipe, both):
        attached = sample(pipe, SCENES.prompts[:8], ONE, seed=2)
    pipe.load_lora_weights(tmp_path, weight_name="fast.safetensors", adapter_name="fast")
    try:
        loaded = sample(pipe, SCENES.prompts[:8], ONE, seed=2)
    finally:
        lh.detach(pipe, "fast")
    assert float((attached - loaded).abs().max()) < 1e-3


@pytest.mark.parametrize("style", STYLES)
def test_the_vectors_are_apart(style: str) -> None:
    """The acceleration vector never saw the style, so the two add without getting in each other's way."""
    assert abs(lh.cosine(vector(style), vector("lcm"))) < 0.1
