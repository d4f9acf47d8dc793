"""The figure on tiny pipelines of every class: cells, noise, files, resuming; and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lorahub as lh
from lorahub.algebra.lowrank import LowRank
from lorahub.algebra.recipe import Source
from lorahub.errors import NotFoundError, UsageError
from lorahub.validate.cells import BASE, COMBINATION, STYLE, Acceleration, Cell, Plan, Sweep
from lorahub.validate.drawing import read_pictures, read_settings
from lorahub.validate.generating import Term, generate, open_drawing
from lorahub.validate.numeric import denoiser_of
from tests.validate import pipes

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
]
LCM = Acceleration("LCMScheduler", guidance=1.0, steps=2)
PLAN = Plan(("a cat", "dog"), seeds=(0, 7), steps=(1, 2), reference_steps=3, guidance=2.0, samplers=("ddim",))


def adapter(pipe: Any, seed: int, size: float = 0.3) -> lh.Adapter:
    """A vector on the attention queries of the pipeline's denoiser."""
    component, model = denoiser_of(pipe)
    random = torch.Generator().manual_seed(seed)
    layers = {}
    for name, module in model.named_modules():
        if name.endswith("to_q"):
            up = torch.randn(module.out_features, 2, generator=random) * size
            down = torch.randn(2, module.in_features, generator=random) * size
            layers[f"{component}.{name}"] = LowRank.of(up, down)
    return lh.Adapter("unlisted:dotted", layers, recipe=Source(f"vector{seed}"))


def terms(pipe: Any) -> list[Term]:
    return [Term("style", 0.8, adapter(pipe, 1)), Term("fast", 1.0, adapter(pipe, 2), accelerates=True)]


@pytest.mark.parametrize("kind", pipes.MAKERS)
def test_every_class_of_pipeline_draws_every_cell_from_the_same_noise(kind: str, tmp_path: Path) -> None:
    pipe = pipes.MAKERS[kind]()
    flow = kind in ("sd3", "flux")
    fast = Acceleration("FlowMatchEulerDiscreteScheduler", guidance=1.0, steps=2) if flow else LCM
    plan = replace(PLAN, prompts=("a cat",), samplers=("euler",) if flow else ("ddim",), acceleration=fast, height=32)
    plan = replace(plan, width=32)
    before = pipe.scheduler
    ticks: list[tuple[int, int]] = []
    drawn = generate(pipe, terms(pipe), plan, tmp_path, progress=lambda *each: ticks.append(each))
    rows = [(cell.row, cell.steps) for cell in drawn.cells]
    assert rows == [
        (BASE, 3),
        (BASE, 1),
        (BASE, 2),
        (STYLE, 3),
        (STYLE, 1),
        (STYLE, 2),
        (COMBINATION, 1),
        (COMBINATION, 2),
    ]
    assert ticks == [(n, 16) for n in range(1, 17)]
    assert read_pictures(drawn.pictures).shape == (16, 3, 32, 32)
    assert len({path.path.read_bytes() for path in drawn.pictures}) == 16
    assert pipe.scheduler is before
    assert not getattr(denoiser_of(pipe)[1], "peft_config", None)
    assert drawn.peak_memory is not None
    assert set(drawn.seconds_per_step) == {BASE, STYLE, COMBINATION}
    with pytest.raises(UsageError, match=r"does not draw with"):
        generate(
            pipe,
            terms(pipe),
            replace(plan, acceleration=LCM if flow else replace(fast, scheduler="FlowMatchEulerDiscreteScheduler")),
            tmp_path,
        )


def test_a_picture_is_what_plain_diffusers_draws(tmp_path: Path) -> None:
    from diffusers import LCMScheduler

    pipe = pipes.sd15()
    plan = replace(PLAN, acceleration=LCM, steps=(2,))
    drawn = generate(pipe, terms(pipe), plan, tmp_path)
    chosen = next(p for p in drawn.pictures if p.cell.row == COMBINATION and (p.prompt, p.seed) == ("dog", 7))
    style, fast = (term.adapter for term in terms(pipe))
    lh.attach(pipe, 0.8 * style + fast)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    random = torch.Generator().manual_seed(7)
    steps = chosen.cell.steps
    image = pipe("dog", num_inference_steps=steps, guidance_scale=1.0, generator=random, output_type="pil").images[0]
    apart = np.abs(np.asarray(image).astype(int) - np.asarray(Image.open(chosen.path)).astype(int))
    assert apart.max() <= 1  # drawn in a batch there, alone here
    assert read_settings(chosen.path)["seed"] == 7


def test_an_interrupted_run_goes_on_and_changed_settings_are_drawn_anew(tmp_path: Path) -> None:
    pipe = pipes.sd15()
    style = [Term("style", 1.0, adapter(pipe, 1))]
    plan = replace(PLAN, prompts=("a cat",), steps=(1,), reference_steps=2)

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(pipe, style, plan, tmp_path, progress=stop)
    assert not getattr(pipe.unet, "peft_config", None)
    assert not list(tmp_path.glob("*.tmp"))
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    assert len(kept) >= 5
    ticks: list[int] = []
    whole = generate(pipe, style, plan, tmp_path, progress=lambda done, total: ticks.append(done))
    assert ticks[-1] == 8
    assert len(ticks) == 8 - len(kept)
    assert all((tmp_path / name).stat().st_mtime_ns == at for name, at in kept.items())
    stronger = [Term("style", 1.2, adapter(pipe, 1))]
    other = generate(pipe, stronger, plan, tmp_path)
    shared = {p.path for p in other.pictures} & {p.path for p in whole.pictures}
    assert {p.cell.row for p in whole.pictures if p.path in shared} == {BASE}
    pipe.unet.conv_in.weight.data[0, 0, 0, 0] += 1  # another checkpoint
    changed = generate(pipe, style, plan, tmp_path)
    assert not {p.path for p in changed.pictures} & {p.path for p in whole.pictures}


def test_a_damaged_picture_is_drawn_again_and_one_that_is_no_number_is_black(tmp_path: Path) -> None:
    pipe = pipes.sd15()
    one = replace(PLAN, prompts=("a cat",), seeds=(0,), steps=(1,), reference_steps=2)
    first = generate(pipe, [Term("style", 1.0, adapter(pipe, 1))], one, tmp_path)
    first.pictures[0].path.write_bytes(b"")
    again = generate(pipe, [Term("style", 1.0, adapter(pipe, 1))], one, tmp_path)
    assert read_pictures(again.pictures).shape[0] == len(first.pictures)
    broken = generate(pipe, [Term("style", 1.0, adapter(pipe, 1, size=1e30))], one, tmp_path)
    bad = [picture for picture in broken.pictures if not picture.finite]
    assert {picture.cell.row for picture in bad} == {COMBINATION}
    assert not read_pictures(bad).any()
    assert all(
        not p.finite
        for p in generate(pipe, [Term("style", 1.0, adapter(pipe, 1, size=1e30))], one, tmp_path).of(bad[0].cell)
    )


def test_a_sweep_draws_the_combination_at_every_value(tmp_path: Path) -> None:
    pipe = pipes.sd15()
    plan = replace(PLAN, acceleration=LCM, sweep=Sweep("fast", (0.5, 1.0)))
    cells = open_drawing(pipe, terms(pipe), plan, tmp_path).cells
    fast = [dict(cell.coefficients)["fast"] for cell in cells if cell.row == COMBINATION]
    assert fast == [1.0, 1.0, 0.5, 0.5]
    assert Cell(COMBINATION, "LCMScheduler", 2, 1.0, (("style", 0.8), ("fast", 0.5))) in cells


def test_a_folder_is_loaded_for_the_device(tmp_path: Path) -> None:
    pipe = pipes.sd15()
    pipe.save_pretrained(tmp_path / "base")
    plan = replace(PLAN, prompts=("a cat",), steps=(1,), reference_steps=2, height=32, width=32)
    style = [Term("style", 1.0, adapter(pipe, 1))]
    drawn = generate(tmp_path / "base", style, plan, tmp_path / "pictures", device="cpu")
    assert (drawn.pipeline, drawn.placement["dtype"], drawn.placement["device"]) == (
        "StableDiffusionPipeline",
        "float32",
        "cpu",
    )
    live = generate(pipe, style, plan, tmp_path / "live")
    assert [p.path.name for p in live.pictures] == [p.path.name for p in drawn.pictures]  # the same weights
    with pytest.raises(NotFoundError, match="no such base model"):
        generate(tmp_path / "absent", style, plan, tmp_path)


def test_what_does_not_fit_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    pipe = pipes.sd15()
    for plan, error in (
        (replace(PLAN, samplers=("heun",)), "expected one of dpmsolver"),
        (replace(PLAN, acceleration=replace(LCM, scheduler="NoScheduler")), "no scheduler 'NoScheduler'"),
        (replace(PLAN, sweep=Sweep("other", (1.0,))), "no term 'other'"),
    ):
        with pytest.raises(UsageError, match=error):
            generate(pipe, terms(pipe), plan if plan.acceleration else replace(plan, acceleration=LCM), tmp_path)
    with pytest.raises(UsageError, match="does not say how"):
        generate(pipe, terms(pipe), PLAN, tmp_path)
    flux = pipes.flux()
    with pytest.raises(UsageError, match="no negative prompt"):
        generate(flux, [Term("style", 1.0, adapter(flux, 1))], replace(PLAN, samplers=(), negative="x"), tmp_path)
    assert not list(tmp_path.glob("*.png"))
