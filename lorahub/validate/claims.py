"""Is a file the combination that it is said to be? Layer by layer, ΔW against ΔW; names and metadata prove nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from lorahub.algebra.adapter import Adapter
from lorahub.algebra.geometry import layer_grams
from lorahub.errors import BaseMismatchError, LorahubError
from lorahub.loading import combine
from lorahub.validate.checks_file import SHOWN
from lorahub.validate.finding import Finding, failed, passed, unsure
from lorahub.validate.opening import Subject

TOLERANCE = 5e-3
"""Relative distance per layer that storing both sides in fp16 or bf16 explains."""


@dataclass(frozen=True)
class Apart:
    """One layer of both: distance as a share of the claimed layer's norm, and the factor that fits it best."""

    relative: float
    factor: float


def distances(came: Adapter, claimed: Adapter) -> dict[str, Apart]:
    """Of every layer of either: ‖ΔW - ΔW'‖ / ‖ΔW'‖, and <ΔW, ΔW'> / ‖ΔW'‖². Raises what `layer_grams` raises."""
    found = {}
    for name in dict.fromkeys([*claimed.layers, *came.layers]):
        if name not in came.layers or name not in claimed.layers:
            there = name in came.layers
            empty = not (came if there else claimed).layers[name].rank
            found[name] = Apart(0.0 if empty else math.inf if there else 1.0, 0.0)
    both = [name for name in claimed.layers if name in came.layers]
    if both:
        # the distance is that of the difference itself: from three norms it would lose half its digits
        gap = layer_grams([came - claimed, claimed])
        inner = layer_grams([came, claimed])
        for name in both:
            length, size = (math.sqrt(max(float(gap[name][i, i]), 0.0)) if name in gap else 0.0 for i in (0, 1))
            relative = 0.0 if not length else length / size if size else math.inf
            found[name] = Apart(relative, float(inner[name][0, 1]) / size**2 if size else 0.0)
    return found


def claims(subject: Subject) -> Iterator[Finding]:
    """The adapter equals the expression it is held against (--against), in every layer."""
    if subject.claims is None or subject.adapter is None:
        return
    try:
        wanted = combine(subject.claims, base=subject.base)
        apart = distances(subject.adapter, wanted)
    except BaseMismatchError as error:
        yield failed(f"it is not {subject.claims}: {error}")
        return
    except LorahubError as error:
        yield unsure(f"it cannot be compared with {subject.claims}: {error}")
        return
    bad = {name: each for name, each in apart.items() if not each.relative <= TOLERANCE}
    worst = sorted(bad.items(), key=lambda item: -item[1].relative)
    if bad:
        yield failed(_summary(subject.claims, apart, bad), value=worst[0][1].relative, limit=TOLERANCE)
    for name, each in worst[:SHOWN]:
        yield failed(_words(name, each), layer=name, value=each.relative, limit=TOLERANCE)
    if not bad:
        largest = max((each.relative for each in apart.values()), default=0.0)
        yield passed(
            f"it is {subject.claims}: ΔW of {len(apart)} layers differs by at most {largest:.1e}",
            value=largest,
            limit=TOLERANCE,
        )


def _summary(claim: str, apart: dict[str, Apart], bad: dict[str, Apart]) -> str:
    text = f"it is not {claim}: {len(bad)} of {len(apart)} layers differ"
    factors = [each.factor for each in apart.values()]
    spread = max(factors) - min(factors)
    if len(factors) > 1 and spread < 1e-3 * abs(factors[0]):
        straight = all(abs(each.relative - abs(each.factor - 1)) < TOLERANCE for each in apart.values())
        text += f"; everywhere it is {factors[0]:.4g} times {'that' if straight else 'the part along it'}"
    return text


def _words(name: str, apart: Apart) -> str:
    if math.isinf(apart.relative):
        return f"{name} is not in what was claimed"
    if not apart.factor and apart.relative == 1:
        return f"{name} is missing or zero"
    return f"{name} differs by {apart.relative:.1%} of its norm"
