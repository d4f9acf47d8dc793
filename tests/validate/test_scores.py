"""Scores against their twins in numpy and torchmetrics, on pictures whose answer is known; verdicts on made-up numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lorahub.errors import FileFormatError, NotFoundError
from lorahub.validate import measures
from lorahub.validate.cells import BASE, COMBINATION, STYLE, Acceleration, Cell, Generation, Picture, Plan, Score
from lorahub.validate.drawing import write_picture
from lorahub.validate.finding import Severity
from lorahub.validate.judges import find_judges, frechet, quick_frechet
from lorahub.validate.scores import SCORES, Scorer, interval
from lorahub.validate.verdicts import judge

PLAN = Plan(
    ("a", "b", "c"),
    seeds=(0, 1, 2),
    steps=(4,),
    samplers=("ddim",),
    guidance=2.0,
    acceleration=Acceleration("LCMScheduler"),
)
BASE_MANY = Cell(BASE, "ddim", 25, 2.0)
STYLE_MANY = Cell(STYLE, "ddim", 25, 2.0, (("style", 1.0),))
PLAIN = Cell(STYLE, "ddim", 4, 2.0, (("style", 1.0),))
FAST = Cell(COMBINATION, "LCMScheduler", 4, 1.0, (("style", 1.0), ("lcm", 1.0)))


def noise(seed: int, count: int = 9, side: int = 24) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def blurred(pictures: Tensor) -> Tensor:
    return nn.functional.avg_pool2d(pictures, 5, stride=1, padding=2, count_include_pad=False)


class Means(nn.Module):
    """Features: the mean of each quarter of each channel."""

    def forward(self, pictures: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(pictures.float() / 255, 2).flatten(1)


def test_psnr_sharpness_and_saturation_are_their_formulas() -> None:
    one, other = noise(1), noise(2)
    error = ((one - other).double().numpy() ** 2).mean((1, 2, 3))
    assert measures.psnr(one, other) == pytest.approx(10 * np.log10(1 / error))
    assert np.isinf(measures.psnr(one, one)).all()
    luma = 255 * np.einsum("nchw,c->nhw", one.double().numpy(), [0.299, 0.587, 0.114])
    laplace = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:] - 4 * luma[:, 1:-1, 1:-1]
    assert measures.sharpness(one) == pytest.approx(laplace.reshape(9, -1).var(1, ddof=1), rel=1e-4)
    grey, red = torch.full((1, 3, 4, 4), 0.5), torch.tensor([0.5, 0.25, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert measures.saturation(torch.cat([grey, red])) == pytest.approx([0, 1])


def test_ssim_is_one_for_equal_pictures_and_falls_with_blur() -> None:
    pictures = noise(1, count=3)
    assert measures.ssim(pictures, pictures) == pytest.approx([1, 1, 1])
    assert (measures.ssim(blurred(pictures), pictures) < 0.7).all()


def test_texture_sees_blur_and_colour_but_not_another_draw_of_the_same() -> None:
    reference = measures.texture(noise(1))
    again, blur = measures.texture(noise(2)), measures.texture(blurred(noise(1)))
    tinted = measures.texture(noise(1) * torch.tensor([1.0, 0.6, 0.6]).view(1, 3, 1, 1))
    same = measures.apart(again, reference).max()
    assert measures.apart(blur, reference).min() > 3 * same
    assert measures.apart(tinted, reference).min() > 3 * same


def test_strength_kept_is_the_share_of_the_way_to_the_style() -> None:
    random = torch.Generator().manual_seed(0)
    base = torch.randn(400, 6, generator=random).double()
    style = base + torch.tensor([3.0, 0, 0, 0, 0, 0])
    for share in (0.0, 0.4, 1.0):
        moved = base + share * (style - base) + 0.5 * torch.randn(400, 6, generator=random)
        assert measures.kept(moved, base, style).mean() == pytest.approx(share, abs=0.03)
    between, way = base + 0.3, style - base
    squares = [part.square().sum(1) for part in (between - base, between - style, way)]
    by_distances = (squares[0] - squares[1] + squares[2]) / (2 * squares[2])
    assert measures.kept(between, base, style) == pytest.approx(by_distances.numpy())
    assert np.isnan(measures.kept(base, base, base)).all()


def test_the_quick_frechet_distance_is_that_of_torchmetrics() -> None:
    random = torch.Generator().manual_seed(3)
    one, other = (torch.randn(n, 5, generator=random).double() * 2 + shift for n, shift in ((30, 0.0), (20, 1.0)))
    assert quick_frechet(one, other) == pytest.approx(frechet(one, other), rel=1e-6)
    assert quick_frechet(one, one) == pytest.approx(0, abs=1e-9)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = sum(low < 1 < high for low, high in (interval(random.normal(1, 2, 40)) for _ in range(200)))
    assert 180 <= hits <= 199
    assert interval(np.arange(9.0)) == interval(np.arange(9.0))


def cells(folder: Path, **drawn: Tensor) -> dict[Cell, tuple[Picture, ...]]:
    result = {}
    for (name, pictures), cell in zip(drawn.items(), (BASE_MANY, STYLE_MANY, PLAIN, FAST), strict=False):
        asked = [(prompt, seed) for prompt in PLAN.prompts for seed in PLAN.seeds]
        files = []
        for place, (prompt, seed) in enumerate(asked):
            path = folder / f"{name}{place}.png"
            write_picture(path, pictures[place].permute(1, 2, 0).numpy(), {}, 0.5 + 0.1 * seed)
            files.append(Picture(cell, prompt, seed, path, 0.5 + 0.1 * seed))
        result[cell] = tuple(files)
    return result


def generation(folder: Path, features: Any = None, **drawn: Tensor) -> Generation:
    pictures = cells(folder, **drawn)
    scores = Scorer(PLAN, find_judges(features), STYLE_MANY, BASE_MANY).score(pictures)
    every = tuple(picture for each in pictures.values() for picture in each)
    return Generation(PLAN, "base", "Pipeline", every, scores, STYLE_MANY, BASE_MANY, {}, None, {})


def tint(pictures: Tensor) -> Tensor:
    return pictures * torch.tensor([1.0, 0.7, 0.7]).view(1, 3, 1, 1)


def found(drawn: Generation) -> dict[str, Severity]:
    return {finding.check: finding.severity for finding in judge(drawn)}


def test_every_score_is_there_with_its_spread_and_interval_or_with_a_reason(tmp_path: Path) -> None:
    drawn = generation(
        tmp_path, Means(), base=noise(1), style=tint(noise(1)), plain=tint(noise(3)), fast=tint(noise(2))
    )
    assert {score.name for score in drawn.scores if score.cell == FAST} == set(SCORES) - {"variation"}
    for score in drawn.scores:
        if score.value is None:
            assert score.name in ("lpips", "clip")
            assert score.reason.startswith("cannot be had: ")
        else:
            assert score.spread is not None
            assert score.low is not None
            assert score.high is not None
            assert not score.reason
            assert score.name == "frechet" or score.low <= score.value <= score.high
    seconds = drawn.score(FAST, "seconds")
    assert seconds is not None
    assert seconds.value == pytest.approx(0.6)
    assert seconds.spread == pytest.approx(0.1)
    cell = json.loads(json.dumps(drawn.to_json(), allow_nan=False))["cells"][3]
    assert cell["scores"]["psnr"]["value"] == pytest.approx(np.mean(cell["scores"]["psnr"]["values"]))
    assert len(cell["pictures"]) == 9
    without = generation(tmp_path, base=noise(1), style=tint(noise(1)), plain=noise(3), fast=noise(2))
    missing = without.score(FAST, "frechet")
    assert missing is not None
    assert missing.reason == "cannot be had: no feature model was given"


@pytest.mark.parametrize("features", [None, Means()])
def test_pictures_like_those_of_many_steps_pass(tmp_path: Path, features: Any) -> None:
    drawn = generation(
        tmp_path, features, base=noise(1), style=tint(noise(1)), plain=blurred(tint(noise(1))), fast=tint(noise(2))
    )
    assert set(found(drawn).values()) == {Severity.PASS}
    assert set(found(drawn)) == {"pictures.distance", "pictures.style", "pictures.saturation", "pictures.sharpness"}


def test_nearer_than_without_acceleration_passes_though_farther_than_a_seed(tmp_path: Path) -> None:
    near = 0.7 * tint(noise(1)) + 0.3 * blurred(tint(noise(1)))
    drawn = generation(tmp_path, base=noise(1), style=tint(noise(1)), plain=blurred(tint(noise(1))), fast=near)
    finding = next(each for each in judge(drawn) if each.check == "pictures.distance")
    assert finding.severity is Severity.PASS
    assert finding.value is not None
    assert finding.limit is not None
    assert finding.value > finding.limit


def test_each_fault_is_found(tmp_path: Path) -> None:
    good = {"base": noise(1), "style": tint(noise(1)), "plain": tint(noise(3))}
    assert found(generation(tmp_path, **good, fast=blurred(tint(noise(2)))))["pictures.distance"] is Severity.FAIL
    assert found(generation(tmp_path, **good, fast=blurred(tint(noise(2)))))["pictures.sharpness"] is Severity.WARNING
    assert found(generation(tmp_path, **good, fast=noise(2)))["pictures.style"] is Severity.WARNING
    loud = tint(noise(2)) * torch.tensor([1.0, 0.05, 0.05]).view(1, 3, 1, 1)
    assert found(generation(tmp_path, **good, fast=loud))["pictures.saturation"] is Severity.WARNING
    drawn = generation(tmp_path, **good, fast=tint(noise(2)))
    broken = replace(drawn, pictures=(*drawn.pictures[:-1], replace(drawn.pictures[-1], finite=False)))
    assert found(broken)["pictures.finite"] is Severity.FAIL


def test_what_the_numbers_leave_open_is_inconclusive(tmp_path: Path) -> None:
    drawn = generation(tmp_path, base=noise(1), style=tint(noise(1)), plain=tint(noise(3)), fast=tint(noise(2)))
    one_seed = replace(drawn, scores=tuple(score for score in drawn.scores if score.name != "variation"))
    assert found(one_seed)["pictures.distance"] is Severity.INCONCLUSIVE
    limit = drawn.score(STYLE_MANY, "variation")
    assert limit is not None
    assert limit.value is not None

    def torn(score: Score) -> Score:
        """Half of the pictures well within the limit, half well beyond."""
        if (score.cell, score.name) not in ((FAST, "texture"), (PLAIN, "texture")):
            return score
        return replace(score, values=tuple(float(limit.value or 0) * (0.2 if n % 2 else 2.4) for n in range(9)))

    assert found(replace(drawn, scores=tuple(map(torn, drawn.scores))))["pictures.distance"] is Severity.INCONCLUSIVE


def test_feature_models_come_from_files_and_clip_from_a_folder(tmp_path: Path) -> None:
    program = torch.export.export(
        Means(),
        (torch.zeros(2, 3, 24, 24, dtype=torch.uint8),),
        dynamic_shapes=({0: torch.export.Dim("count", max=512)},),
    )
    torch.export.save(program, tmp_path / "means.pt2")
    wanted = Means()((noise(1) * 255).round().byte()).double()
    assert torch.allclose(find_judges(tmp_path / "means.pt2").see(noise(1)), wanted)
    (tmp_path / "bad.pt").write_bytes(b"no program")
    with pytest.raises(FileFormatError, match="no program of torch"):
        find_judges(tmp_path / "bad.pt")
    with pytest.raises(NotFoundError, match="no such feature model"):
        find_judges(tmp_path / "absent.pt")
    with pytest.raises(NotFoundError, match="no such CLIP folder"):
        find_judges(clip=tmp_path / "absent")
    with pytest.raises(FileFormatError, match="holds no CLIP model"):
        find_judges(clip=tmp_path)
