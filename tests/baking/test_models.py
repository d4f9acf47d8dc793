"""Components built from single files answer as the models that the files were made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lorahub.baking.models import answer, built
from lorahub.bases.configs import Part
from lorahub.checkpoints import open_checkpoint
from lorahub.errors import PartialError
from tests.baking import making
from tests.checkpoints.making import ldm, open_clip, weights


def part(component: str, model: Any) -> Part:
    library = "diffusers" if component == "unet" else "transformers"
    config = dict(model.config) if component == "unet" else model.config.to_dict()
    return Part(component, f"{library}:{type(model).__name__}", config, ())


def test_every_component_of_a_single_file(tmp_path: Path) -> None:
    models = making.models("sdxl")
    tensors = {
        **ldm(weights(models["unet"]), making.base("sdxl")),
        **{
            f"conditioner.embedders.0.transformer.{key}": value
            for key, value in weights(models["text_encoder"]).items()
        },
        **open_clip(weights(models["text_encoder_2"]), "conditioner.embedders.1.model."),
    }
    save_file(tensors, tmp_path / "sdxl.safetensors")
    checkpoint = open_checkpoint(tmp_path / "sdxl.safetensors", base=making.base("sdxl"))
    for component, model in models.items():
        found = built(checkpoint, part(component, model))
        torch.testing.assert_close(answer(found), answer(model), rtol=1e-5, atol=1e-5)


def test_a_parameter_that_is_not_there(tmp_path: Path) -> None:
    model = making.models("sd15")["unet"]
    tensors = ldm(weights(model), making.base("sd15"))
    del tensors["model.diffusion_model.out.2.bias"]
    save_file(tensors, tmp_path / "sd15.safetensors")
    checkpoint = open_checkpoint(tmp_path / "sd15.safetensors", base=making.base("sd15"))
    with pytest.raises(PartialError, match=r"sd15 lacks conv_out\.bias of UNet2DConditionModel"):
        built(checkpoint, part("unet", model))
