"""On a GPU: half precision, offloading, and rank reduction in batches give what the CPU gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lorahub as lh
from lorahub.validate import numeric, numeric_layers
from lorahub.validate.cells import COMBINATION
from lorahub.validate.drawing import Session, read_pictures
from lorahub.validate.finding import Severity
from lorahub.validate.fitting import Fit
from lorahub.validate.generating import generate, open_drawing
from lorahub.validate.pipelines import free_memory, load_pipeline, place
from tests.validate import pipes
from tests.validate.test_generating import LCM, PLAN, adapter, terms
from tests.validate.test_numeric import vector

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device on this machine"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
]
SMALL = replace(PLAN, prompts=("a cat",), acceleration=LCM, height=32, width=32)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_layers_make_the_requested_change(dtype: str) -> None:
    found = numeric_layers.check_layers([(0.8, vector(1)), (1.0, vector(2))], dtype=dtype, device="cuda")
    assert [finding.severity for finding in found] == [Severity.PASS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_denoiser_answers_alike_in_every_dtype_and_says_its_memory(dtype: torch.dtype) -> None:
    pipe = pipes.sdxl().to("cuda", dtype)
    found = numeric.check_pipeline(pipe, [(1.0, adapter(pipe, 1, size=0.6))])
    assert {finding.severity for finding in found.findings} == {Severity.PASS}
    assert all(step.peak for step in found.steps.values())


@pytest.mark.parametrize("offload", ["none", "model", "sequential"])
def test_offloading_draws_the_same_pictures(offload: str, tmp_path: Path) -> None:
    pipe = pipes.sd15()
    drawing = open_drawing(pipe, terms(pipe), SMALL, tmp_path / "cpu")
    wanted = drawing.session.draw(drawing.cells)
    fit = Fit("cuda", "float32", offload, sliced=offload != "none", batch=2)
    moved = Session(pipe, drawing.plan, drawing.session.adapters, tmp_path / offload, fit).draw(drawing.cells)
    # The noise is drawn on the CPU, so that only the arithmetic of the devices tells the pictures apart.
    assert (read_pictures(moved) - read_pictures(wanted)).abs().mean() < 0.01
    assert {picture.cell.row for picture in moved} >= {COMBINATION}


def test_a_folder_goes_to_the_gpu_in_half_precision(tmp_path: Path) -> None:
    pipe = pipes.sd15()
    pipe.save_pretrained(tmp_path / "base")
    loaded, fit = load_pipeline(tmp_path / "base", "auto", 32 * 32)
    assert (fit.device, fit.dtype, fit.offload) == ("cuda", "float16", "none")
    place(loaded, fit)
    assert (loaded.device.type, loaded.dtype) == ("cuda", torch.float16)
    assert free_memory("cuda") > 0
    drawn = generate(tmp_path / "base", terms(pipe), SMALL, tmp_path / "pictures", device="cuda")
    assert drawn.peak_memory
    assert all(picture.finite for picture in drawn.pictures)


def test_ranks_are_reduced_in_batches_as_on_the_cpu() -> None:
    pipe = pipes.sdxl()
    whole = sum((adapter(pipe, seed) for seed in range(2, 5)), start=adapter(pipe, 1))
    here, there = (lh.truncate(whole, lh.fixed(4), device=device) for device in ("cpu", "cuda"))
    assert there.error == pytest.approx(here.error, rel=1e-4)
    assert lh.norm(here - there) < 1e-3 * lh.norm(whole)
