"""Plans against the paper's counts, and against what training really trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorahub.bases.library import get, register
from lorahub.bases.live import describe
from lorahub.distill.models import Networks
from lorahub.distill.plan import plan
from lorahub.distill.settings import Settings
from lorahub.errors import NotFoundError, UsageError
from tests.distill.tiny import sd


@pytest.mark.parametrize(
    ("base", "trainable", "unet"),
    [
        ("sd15", 67_252_224, 859_520_964),
        ("sdxl", 196_751_360, 2_567_463_684),
        ("ssd-1b", 104_902_656, 1_331_334_404),
    ],
)
def test_the_counts_of_the_paper(base: str, trainable: int, unet: int) -> None:
    """Table 1 of arXiv 2311.05556: 67.5M, 197M and 105M."""
    made = plan(base, Settings())
    assert made.parameters == trainable
    assert made.parameters == sum(target.parameters for target in made.targets)
    assert made.base_parameters == unet
    assert made.file_size == 2 * trainable


def test_a_plan_is_what_is_trained(tmp_path: Path) -> None:
    pipeline = sd()
    register(describe("tiny-planned", {"unet": pipeline.unet}, like="sd15"))
    settings = Settings(rank=3, targets=("to_q", "conv1", "attn1.to_q", "conv_in"))
    made = plan("tiny-planned", settings)
    with Networks(pipeline, settings) as networks:
        assert made.parameters == sum(value.numel() for value in networks.theta.values())
        assert made.layers == len(networks.theta) // 2
    assert made.base_parameters == sum(value.numel() for value in pipeline.unet.parameters())
    assert made.memory["optimiser"] == 8 * made.parameters
    full = plan("tiny-planned", replace(settings, mode="full", target="student", precision="bf16"))
    assert full.parameters == made.base_parameters
    assert full.memory["U-Net"] == 2 * made.base_parameters
    assert full.total == (2 + 4 + 4 + 8) * made.base_parameters


@pytest.mark.slow
@pytest.mark.parametrize("base", ["sd15", "sd2", "sdxl", "ssd-1b"])
def test_a_plan_counts_what_peft_would_train(base: str) -> None:
    """On the meta device, so that nothing of the size of SDXL is held."""
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig, inject_adapter_in_model

    from lorahub.bases.configs import RECIPES

    settings = Settings()
    part = next(part for recipe in RECIPES if recipe.name == base for part in recipe.parts if part.name == "unet")
    with torch.device("meta"):
        unet = UNet2DConditionModel(**part.config)
        inject_adapter_in_model(LoraConfig(r=64, target_modules=list(settings.targets)), unet, low_cpu_mem_usage=True)
    assert plan(base, settings).parameters == sum(p.numel() for n, p in unet.named_parameters() if "lora_" in n)
    assert get(base).name == base


def test_what_cannot_be_planned() -> None:
    with pytest.raises(UsageError, match="flux1 has no U-Net"):
        plan("flux1", Settings())
    with pytest.raises(UsageError, match="sd15 has no layer called nowhere"):
        plan("sd15", Settings(targets=("nowhere",)))
    with pytest.raises(NotFoundError):
        plan("sd99", Settings())
