"""From pictures to scores: a number for each picture, its mean, its spread over seeds, and a bootstrap interval.

The rule: a score that cannot be had is there all the same, with the reason in place of the number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorahub.validate import measures
from lorahub.validate.cells import COMBINATION, STYLE, Cell, Picture, Plan, Score
from lorahub.validate.drawing import read_pictures
from lorahub.validate.judges import Judges, frechet, quick_frechet
from lorahub.validate.measures import Numbers
from lorahub.validate.perceptual import SMALLEST

ROUNDS, FRECHET_ROUNDS = 1000, 200
_SEED = 20231109


@dataclass(frozen=True)
class Kind:
    """What a score says. better: `higher`, `lower`, or `` where neither is. unit: `` for a bare number."""

    title: str
    better: str
    unit: str = ""


SCORES: Mapping[str, Kind] = {
    "psnr": Kind("Peak signal-to-noise ratio to the many-step picture", "higher", "dB"),
    "ssim": Kind("Structural similarity to the many-step picture", "higher"),
    "lpips": Kind("LPIPS distance to the many-step picture", "lower"),
    "texture": Kind("Difference in texture and colour from the many-step picture", "lower"),
    "features": Kind("Difference in learned features from the many-step picture", "lower"),
    "variation": Kind("Difference between many-step pictures of two seeds, in features or else texture", ""),
    "frechet": Kind("Fréchet distance to the many-step pictures", "lower"),
    "clip": Kind("CLIP score of picture and prompt", "higher"),
    "style": Kind("Style strength kept: 0 at the base's many-step pictures, 1 at the style's", "higher"),
    "sharpness": Kind("Variance of the Laplacian", ""),
    "saturation": Kind("Mean saturation", ""),
    "seconds": Kind("Time to draw a picture", "lower", "s"),
}


@dataclass(frozen=True)
class _Seen:
    """A cell's pictures, as tensor and as features: learned where there are any, else texture."""

    pictures: tuple[Picture, ...]
    pixels: Tensor
    texture: Tensor
    features: Tensor | None

    @property
    def deciding(self) -> Tensor:
        return self.texture if self.features is None else self.features


@dataclass
class Scorer:
    """Scores cells against two references, whose pictures are looked at once."""

    plan: Plan
    judges: Judges
    reference: Cell
    base_reference: Cell

    def __post_init__(self) -> None:
        self._references: dict[Cell, _Seen] = {}

    def score(self, cells: Mapping[Cell, Sequence[Picture]]) -> tuple[Score, ...]:
        """Every score of every cell; the references must be among the cells, or have been in an earlier call."""
        for cell in (self.reference, self.base_reference):
            if cell in cells:
                self._references[cell] = self._see(cells[cell])
        return tuple(score for cell, pictures in cells.items() for score in self._cell(cell, pictures))

    def _see(self, pictures: Sequence[Picture]) -> _Seen:
        pixels = read_pictures(pictures)
        features = None if self.judges.features is None else self.judges.see(pixels)
        return _Seen(tuple(pictures), pixels, measures.texture(pixels), features)

    def _against(self, cell: Cell) -> Cell:
        """The base's cells are compared with the base's reference, all others with the style's."""
        return self.reference if cell.coefficients else self.base_reference

    def _cell(self, cell: Cell, pictures: Sequence[Picture]) -> list[Score]:
        own = self._references.get(cell) or self._see(pictures)
        reference = self._references[self._against(cell)]
        numbers: dict[str, Numbers] = {}
        scores: list[Score] = []
        if cell not in (self.reference, self.base_reference):
            numbers |= self._distances(own, reference)
            scores += [self._missing(name, cell) for name in ("lpips", "features") if name not in numbers]
            scores.append(self._frechet(cell, own, reference))
        elif len(self.plan.seeds) > 1:
            numbers["variation"] = self._variation(own)
        if cell.row in (STYLE, COMBINATION) and self.reference != self.base_reference:
            base, style = self._references[self.base_reference], self._references[self.reference]
            numbers["style"] = measures.kept(own.deciding, base.deciding, style.deciding)
        if self.judges.clip is None:
            scores.append(self._missing("clip", cell))
        else:
            numbers["clip"] = self.judges.clip_scores(own.pixels, [picture.prompt for picture in own.pictures])
        numbers["sharpness"] = measures.sharpness(own.pixels)
        numbers["saturation"] = measures.saturation(own.pixels)
        numbers["seconds"] = np.array([picture.seconds for picture in own.pictures])
        scores += [self._of_pictures(name, cell, values) for name, values in numbers.items()]
        return sorted(scores, key=lambda score: list(SCORES).index(score.name))

    def _distances(self, own: _Seen, reference: _Seen) -> dict[str, Numbers]:
        found = {
            "psnr": measures.psnr(own.pixels, reference.pixels),
            "ssim": measures.ssim(own.pixels, reference.pixels),
            "texture": measures.apart(own.texture, reference.texture),
        }
        if own.features is not None and reference.features is not None:
            found["features"] = measures.apart(own.features, reference.features)
        if self.judges.lpips is not None and min(own.pixels.shape[-2:]) >= SMALLEST:
            found["lpips"] = self.judges.lpips(own.pixels, reference.pixels).double().numpy()
        return found

    def _variation(self, own: _Seen) -> Numbers:
        """From each picture to that of the next seed, for the same prompt."""
        count = len(self.plan.seeds)
        others = [place - place % count + (place + 1) % count for place in range(len(own.pictures))]
        return measures.apart(own.deciding, own.deciding[others])

    def _frechet(self, cell: Cell, own: _Seen, reference: _Seen) -> Score:
        if own.features is None or reference.features is None:
            return Score("frechet", cell, None, reason=self.judges.reasons["features"])
        count = len(own.features)
        if count < 2:
            return Score("frechet", cell, None, reason="cannot be had: it takes at least two pictures")
        ours, theirs, seeds = own.features, reference.features, len(self.plan.seeds)

        def of(index: Any) -> float:
            return quick_frechet(ours[index], theirs[index])

        value = frechet(ours, theirs)
        by_seed = [of(slice(k, None, seeds)) for k in range(seeds)] if count // seeds > 1 and seeds > 1 else []
        spread = float(np.std(by_seed, ddof=1)) if by_seed else None
        # The distance of resampled sets is too large, so the interval is the basic one, mirrored at the value.
        drawn = [of(torch.from_numpy(index)) for index in _resampled(count, FRECHET_ROUNDS)]
        low, high = np.quantile(drawn, [0.025, 0.975])
        return Score("frechet", cell, value, spread, max(0.0, 2 * value - float(high)), 2 * value - float(low))

    def _of_pictures(self, name: str, cell: Cell, values: Numbers) -> Score:
        if not np.isfinite(values).all():
            same = "the pictures are equal" if name == "psnr" else "a number is not finite"
            return Score(name, cell, None, reason=f"cannot be averaged: {same}", values=tuple(values.tolist()))
        seeds = len(self.plan.seeds)
        by_seed = values.reshape(-1, seeds).mean(0)
        spread = float(by_seed.std(ddof=1)) if seeds > 1 else None
        low, high = interval(values)
        return Score(name, cell, float(values.mean()), spread, low, high, values=tuple(values.tolist()))

    def _missing(self, name: str, cell: Cell) -> Score:
        too_small = f"cannot be had: LPIPS takes pictures of at least {SMALLEST} pixels a side"
        reasons = {"lpips": too_small} | self.judges.reasons
        return Score(name, cell, None, reason=reasons[name])


def interval(
    values: Numbers, statistic: Callable[[Numbers], Numbers] = lambda drawn: drawn.mean(-1)
) -> tuple[float, float]:
    """95 % percentile bootstrap interval over pictures (Efron and Tibshirani 1993, ch. 13), seeded.

    values: one number, or row of numbers, for each picture. statistic: rounds x pictures (x row) -> rounds.
    """
    drawn = statistic(values[_resampled(len(values), ROUNDS)])
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _resampled(count: int, rounds: int) -> Any:
    return np.random.default_rng(_SEED).integers(0, count, (rounds, count))
