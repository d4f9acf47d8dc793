"""The benchmark of GPUs: its whole path on a small U-Net, and what it says where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")


def test_its_path_runs_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--tiny", "--steps", "1", "--batch", "1"])
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("CPU, tiny: figures mean nothing, torch ")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]
    measured = {(what, dtype) for what, dtype, *_ in rows}
    for dtype in ("float32", "bfloat16"):
        assert {what for what, of in measured if of == dtype} >= {
            "step, no adapter",
            "put an adapter on",
            "step, adapter at run time",
            "fuse it",
            "step, adapter fused",
            "distil, 1 pictures a step",
        }
    assert all(float(seconds) > 0 for _, _, seconds, *_ in rows)


def test_its_full_size_is_that_of_sdxl() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**gpu.SDXL)
    assert 2.5e9 < sum(weight.numel() for weight in unet.parameters()) < 2.6e9
    assert gpu.Size(gpu.SDXL, 64, "cuda", ("float16",)).pooled == 1280


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.main([])
    assert "torch finds no CUDA device on this machine: nothing was measured" in capsys.readouterr().out
