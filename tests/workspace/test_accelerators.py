from __future__ import annotations

import pytest

from lorahub import bases
from lorahub.workspace.accelerators import FAMILIES, recognise


@pytest.mark.parametrize(
    ("name", "base", "family", "steps"),
    [
        ("lcm-lora-sdv1-5", "sd15", "lcm", 4),
        ("LCM_LoRA_Weights_SD15", "sd15", "lcm", 4),
        ("lcm-lora-sdxl", "sdxl", "lcm", 4),
        ("Hyper-SDXL-8steps-lora", "sdxl", "hyper-sd", 8),
        ("Hyper-SD15-2steps-lora", "sd15", "hyper-sd", 2),
        ("Hyper-SDXL-1step-lora", "sdxl", "hyper-sd-unified", 1),
        ("Hyper-SDXL-12steps-CFG-lora", "sdxl", "hyper-sd-cfg", 12),
        ("Hyper-SD3-4steps-CFG-lora", "sd3", "hyper-sd3", 4),
        ("Hyper-FLUX.1-dev-8steps-lora", "flux1", "hyper-flux", 8),
        ("sdxl_lightning_4step_lora", "sdxl", "sdxl-lightning", 4),
        ("dmd2_sdxl_4step_lora_fp16", "sdxl", "dmd2", 4),
        ("pcm_sd15_normalcfg_8step_converted", "sd15", "pcm-normalcfg", 8),
        ("pcm_sdxl_smallcfg_2step_converted", "sdxl", "pcm-smallcfg", 2),
        ("TCD-SDXL-LoRA", "sdxl", "tcd", 4),
        ("FLUX.1-Turbo-Alpha", "flux1", "flux-turbo-alpha", 8),
        ("Qwen-Image-Lightning-4steps-V1.0", "qwen-image", "qwen-image-lightning", 4),
        ("Wan2.1_T2V_14B_lightx2v_cfg_step_distill_lora_rank32", "wan-14b", "wan2.1-distill", 4),
        ("wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise", "wan-14b", "wan2.2-distill", 4),
    ],
)
def test_published_names_are_recognised(name: str, base: str, family: str, steps: int) -> None:
    found = recognise([name], base)

    assert found is not None
    assert (found.family, found.run.steps) == (family, steps)
    assert found.run.extra["exclusive"] == "accelerator"
    assert name in found.evidence


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("lightning", "sdxl"),
        ("lightning_style_sdxl", "sdxl"),
        ("works-with-lcm", "sd15"),
        ("hyperrealistic", "sdxl"),
        ("hyper-detailed-sdxl", "sdxl"),
        ("turbo", "sdxl"),
        ("add-more-detail", "sd15"),
        ("sdxl_lightning_4step_lora", "sd15"),
        ("lcm-lora-sdxl", None),
    ],
)
def test_a_style_of_that_name_or_another_base_is_not(name: str, base: str | None) -> None:
    assert recognise([name], base) is None


def test_wan_files_say_which_denoiser_they_are_for() -> None:
    found = recognise(["Wan2.2-Lightning-low-noise"], "wan-14b")

    assert found is not None
    assert found.run.extra["component"] == "transformer_2"


def test_every_family_is_for_listed_bases_and_says_how_to_run() -> None:
    for family in FAMILIES:
        assert set(family.bases) <= set(bases.names()), family.name
        low, usual, high = family.steps
        assert low <= usual <= high
        assert family.guidance[0] <= family.guidance[1]
