"""What trainers write about the base is read as they mean it."""

from __future__ import annotations

import pytest

from lorahub.bases import declared


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("ss_base_model_version", "sd_v1", ("sd15",)),
        ("ss_base_model_version", "sd_1.5", ("sd15",)),
        ("ss_base_model_version", "sd_v2_768_v", ("sd2",)),
        ("ss_base_model_version", "sdxl_base_v1-0", ("sdxl",)),
        ("ss_base_model_version", "sdxl_", ("sdxl",)),
        ("ss_base_model_version", "flux1", ("flux1",)),
        ("ss_base_model_version", "3-5-large", ("sd35-large",)),
        ("ss_base_model_version", "sd3.5", ("sd35-medium", "sd35-large")),
        ("ss_base_model_version", "wan2.1", ("wan-14b", "wan-1.3b")),
        ("ss_base_model_version", "zimage", ("z-image",)),
        ("ss_base_model_version", "qwen_image", ("qwen-image",)),
        ("modelspec.architecture", "stable-diffusion-v1/lora", ("sd15",)),
        ("modelspec.architecture", "stable-diffusion-v2-768-v/lora", ("sd2",)),
        ("modelspec.architecture", "stable-diffusion-xl-v1-base/lora", ("sdxl",)),
        ("modelspec.architecture", "stable-diffusion-3-m/lora", ("sd3",)),
        ("modelspec.architecture", "Flux.1-dev/lora", ("flux1",)),
        ("modelspec.architecture", "Qwen-Image-Edit/lora", ("qwen-image",)),
        ("base_model_name_or_path", "stabilityai/stable-diffusion-xl-base-1.0", ("sdxl",)),
        ("base_model_name_or_path", "Wan-AI/Wan2.2-TI2V-5B-Diffusers", ("wan22-5b",)),
        ("ss_sd_model_name", r"D:\models\sd_xl_base_1.0.safetensors", ("sdxl",)),
        ("ss_sd_model_name", "v1-5-pruned-emaonly.ckpt", ("sd15",)),
        ("lorahub.base", "wan-14b", ("wan-14b",)),
    ],
)
def test_known_values(key: str, value: str, meant: tuple[str, ...]) -> None:
    claim = declared.read({key: value})
    assert claim is not None
    assert claim.bases == meant
    assert claim.base == (meant[0] if len(meant) == 1 else None)


@pytest.mark.parametrize(
    "value",
    ["", "stilized_sd15", "hunyuan_video", "sdxl-refiner", "stable-diffusion-xl-v1-refiner", "flux2", "anima", "../.."],
)
def test_other_values_name_no_base(value: str) -> None:
    assert declared.read({"ss_base_model_version": value}) is None


def test_the_most_specific_entry_counts() -> None:
    claim = declared.read({"ss_base_model_version": "sd_v1", "lorahub.base": "sdxl", "modelspec.architecture": "odd"})
    assert claim is not None
    assert str(claim) == "metadata (lorahub.base: 'sdxl') says sdxl"
