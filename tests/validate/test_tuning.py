"""Tuning end to end on a tiny pipeline: what is best is what the pictures say, and pictures are drawn once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import lorahub as lh
from lorahub.errors import LorahubError, UsageError
from lorahub.validate.cells import Picture
from lorahub.validate.page_tuning import render_tuning, write_tuning
from lorahub.validate.picturing import Pictures
from lorahub.validate.tuning import Tuning, tune
from lorahub.workspace.opening import open as open_registry
from tests.validate import pages, pipes
from tests.validate.test_generating import adapter

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
    pytest.mark.xdist_group("chromium"),
]
WISH = {"prompts": ("a cat",), "seeds": (0, 7), "steps": (2,), "reference_steps": 3, "samplers": ("ddim",)}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return pipes.sd15()


@pytest.fixture(scope="module", autouse=True)
def _registry(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`style`, and `fast`, which is an accelerator."""
    folder = tmp_path_factory.mktemp("tuning")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAHUB_HOME", str(folder / "home"))
        for name, seed in (("style", 1), ("fast", 2)):
            lh.save(adapter(pipe, seed), folder / f"{name}.safetensors", format="diffusers")
        with open_registry(folder / "home") as catalogue:
            catalogue.add([folder / "style.safetensors"], name="style", kind="style")
            catalogue.add([folder / "fast.safetensors"], name="fast", kind="acceleration")
            catalogue.edit("fast", run={"scheduler": "LCMScheduler", "steps": 2, "guidance_max": 1.0})
        yield


@pytest.fixture(scope="module")
def tuned(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    wish = Pictures(**WISH, folder=tmp_path_factory.mktemp("pictures"))  # type: ignore[arg-type]
    return tune("0.8*style + 1*fast", pipe, wish, score="psnr", budget=15, command="lorahub tune ...")


def psnr(one: Picture, other: Picture) -> float:
    first, second = (np.asarray(Image.open(picture.path), np.float64) / 255 for picture in (one, other))
    return float(-10 * np.log10(((first - second) ** 2).mean()))


def test_the_best_is_what_the_pictures_say(tuned: Tuning) -> None:
    made = tuned.generation
    assert tuned.trials[0].weights == {"fast": 1.0}, "the expression as it is written comes first"
    assert len(tuned.trials) == 5, "15 pictures: two references and five candidates, two each"
    assert len(made.pictures) == 14
    found = []
    for score in tuned.scores:
        pairs = zip(made.of(score.cell), made.of(made.reference), strict=True)
        found.append(float(np.mean([psnr(one, other) for one, other in pairs])))
        assert score.value == pytest.approx(found[-1], rel=1e-5)
    assert tuned.best == int(np.argmax(found))
    assert tuned.best != 0, "random weights are best by chance elsewhere"
    weight = tuned.trials[tuned.best].weights["fast"]
    assert tuned.expression == f"0.8*style + {weight:g}*fast"
    assert tuned.weights == ()
    assert tuned.gain is not None
    assert tuned.gain[0] == pytest.approx(found[tuned.best] - found[0], rel=1e-4)
    assert made.reference.coefficients == (("style", 0.8),)
    assert made.plan.sweep is not None
    assert made.plan.sweep.values == tuple(sorted(trial.weights["fast"] for trial in tuned.trials))


def test_a_repeated_or_longer_search_draws_only_what_is_missing(tuned: Tuning, pipe: Any) -> None:
    folder = tuned.generation.pictures[0].path.parent
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    ticks: list[tuple[int, int, str]] = []
    longer = tune(
        "0.8*style + 1*fast",
        pipe,
        Pictures(**WISH, folder=folder),  # type: ignore[arg-type]
        score="psnr",
        budget=16,
        progress=lambda *each: ticks.append(each),
    )
    assert longer.trials[:5] == tuned.trials
    assert len(longer.trials) == 6
    after = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) + 2
    assert ticks == [(15, 16, "pictures"), (16, 16, "pictures")]


def test_blocks_and_their_page(pipe: Any, tmp_path: Path) -> None:
    wish = Pictures(**WISH, folder=tmp_path / "pictures")  # type: ignore[arg-type]
    found = tune("0.8*style + 1*fast", pipe, wish, budget=14, per_block=True, vary=["fast=0:2:0.5"])
    blocks = ["unet.down_blocks", "unet.up_blocks", "unet.mid_block"]
    assert [dial.name for dial in found.dials] == [f"fast[{block}]" for block in blocks]
    assert found.expression == "0.8*style + 1*fast"
    values = found.trials[found.best].weights
    assert [(name, weight) for name, _, weight in found.weights] == [
        ("fast", values[f"fast[{block}]"]) for block in blocks
    ]
    text = render_tuning(found)
    assert text.count('<svg viewBox="0 0 360 230"') >= 3
    assert f"--weight fast '^unet\\.mid_block(\\.|$)' {values['fast[unet.mid_block]']}" in text


def test_the_page_in_a_browser(tuned: Tuning, tmp_path: Path) -> None:
    path = write_tuning(tuned, tmp_path / "tuned.html")
    with pages.chromium() as browser, pages.shown(browser, path, viewport={"width": 360, "height": 740}) as page:
        assert page.locator(".verdict strong").inner_text() == tuned.expression
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        slider = page.get_by_role("slider", name="λ of fast")
        slider.press("Home")
        lowest = min(trial.weights["fast"] for trial in tuned.trials)
        assert slider.get_attribute("aria-valuetext") == f"{lowest:g}"
        assert f"{lowest:g}*fast" in page.locator("section.strip").first.inner_text()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"score": "sharpness"}, "cannot tune for 'sharpness': expected one of psnr, ssim"),
        ({"score": "seconds"}, "cannot tune for 'seconds'"),
        ({"budget": 7}, "a budget of 7 pictures is too small: .* take 8, 2 each"),
        ({"vary": ["lcm=0:1"]}, "no term 'lcm' in the expression"),
        ({"score": "clip"}, "cannot tune for clip: cannot be had: no folder of a CLIP model"),
    ],
)
def test_requests_that_cannot_be_met(given: dict[str, Any], message: str, pipe: Any, tmp_path: Path) -> None:
    wish = Pictures(**WISH, folder=tmp_path / "pictures")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        tune("0.8*style + 1*fast", pipe, wish, **{"budget": 8} | given)
    assert not list(tmp_path.rglob("*.png")), "it is said before anything is drawn"


def test_an_expression_of_accelerators_has_no_style_to_keep(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot tune for style: the expression has no terms but accelerators"):
        tune("fast", pipe, Pictures(**WISH, folder=tmp_path), score="style", budget=8)  # type: ignore[arg-type]


def test_one_number_of_steps(pipe: Any) -> None:
    with pytest.raises(UsageError, match="one number of steps, got 1, 2, 4, 8"):
        tune("style", pipe, Pictures(prompts=("a cat",)))


def test_what_is_no_vector_cannot_be_tuned(pipe: Any, tmp_path: Path) -> None:
    (tmp_path / "damaged.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(LorahubError, match="nothing can be drawn"):
        tune(str(tmp_path / "damaged.safetensors"), pipe, Pictures(**WISH))  # type: ignore[arg-type]
