"""DoRA, which only baking can apply: against peft's own merge, and LyCORIS' formula on dense matrices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import lorahub as lh
from lorahub.bases.model import Base
from lorahub.errors import FileFormatError, NotAdditiveError
from tests.baking import making
from tests.checkpoints.making import ldm
from tests.files import tiny

Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.1.resnets.0.conv1"


@pytest.fixture(scope="module")
def sd15() -> Base:
    return making.base("sd15")


@pytest.fixture
def checkpoint(sd15: Base, tmp_path: Path) -> Path:
    save_file(ldm(making.parts("sd15", torch.float32)["unet"], sd15), tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


def lycoris(weight: Tensor, delta: Tensor, scale: Tensor) -> Tensor:
    """`apply_weight_decompose` of lycoris/modules/locon.py at multiplier 1, in float64."""
    merged = weight.double() + delta.double()
    ones = [1] * (merged.ndim - 1)
    if scale.shape[0] == merged.shape[0]:
        norm = merged.reshape(merged.shape[0], -1).norm(dim=1).reshape(-1, *ones)
    else:
        norm = merged.transpose(0, 1).reshape(merged.shape[1], -1).norm(dim=1).reshape(-1, *ones).transpose(0, 1)
    return merged * (scale.double() / norm)


def kohya_dora(weights: Mapping[str, Tensor], path: Path, *, of_rows: bool, seed: int = 0) -> dict[str, Tensor]:
    """A LyCORIS file with a DoRA on `Q` and `CONV`; returns layer -> W' in float64."""
    random, tensors, wanted = torch.Generator().manual_seed(seed), {}, {}
    for module in (Q, CONV):
        weight = weights[f"unet.{module}"]
        ones = [1] * (weight.ndim - 2)
        up = 0.2 * torch.randn(weight.shape[0], 2, *ones, generator=random)
        down = torch.randn(2, *weight.shape[1:], generator=random)
        scale = torch.rand(*((weight.shape[0], 1) if of_rows else (1, weight.shape[1])), *ones, generator=random) + 0.5
        key = f"lora_unet_{module.replace('.', '_')}"
        tensors |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down, f"{key}.dora_scale": scale}
        tensors[f"{key}.alpha"] = torch.tensor(1.0)
        delta = 0.5 * (up.flatten(1).double() @ down.flatten(1).double()).reshape(weight.shape)
        wanted[f"unet.{module}"] = lycoris(weight, delta, scale)
    save_file(tensors, path)
    return wanted


@pytest.mark.parametrize("of_rows", [True, False])
def test_either_axis_as_lycoris_applies_it(sd15: Base, checkpoint: Path, tmp_path: Path, of_rows: bool) -> None:
    before = making.read(checkpoint, sd15)
    wanted = kohya_dora(before, tmp_path / "dora.safetensors", of_rows=of_rows)
    done = lh.bake(f"{tmp_path}/dora.safetensors", checkpoint, tmp_path / "out.safetensors", base=sd15)
    assert (done.layers, done.dora_layers) == (2, 2)
    making.assert_rounded(
        making.read(tmp_path / "out.safetensors", sd15),
        {**{name: tensor.double() for name, tensor in before.items()}, **wanted},
    )


def test_strength_goes_from_the_base_to_the_trained_weight(sd15: Base, checkpoint: Path, tmp_path: Path) -> None:
    before = making.read(checkpoint, sd15)
    wanted = kohya_dora(before, tmp_path / "dora.safetensors", of_rows=True)
    plain = making.adapter(sd15, components=("unet",))
    making.saved(plain, tmp_path / "plain.safetensors", sd15)
    terms = f"0.3*{tmp_path}/dora.safetensors + 0.5*{tmp_path}/plain.safetensors + 0.1*{tmp_path}/dora.safetensors"
    lh.bake(terms, checkpoint, tmp_path / "out.safetensors", base=sd15)
    expected = making.added(before, (0.5, plain))
    for name, trained in wanted.items():
        expected[name] = expected[name] + 0.4 * (trained - before[name].double())
    making.assert_rounded(making.read(tmp_path / "out.safetensors", sd15), expected)


def test_two_doras_are_each_relative_to_the_base(sd15: Base, checkpoint: Path, tmp_path: Path) -> None:
    before = making.read(checkpoint, sd15)
    one = kohya_dora(before, tmp_path / "one.safetensors", of_rows=True)
    two = kohya_dora(before, tmp_path / "two.safetensors", of_rows=False, seed=1)
    lh.bake(
        f"{tmp_path}/one.safetensors + {tmp_path}/two.safetensors", checkpoint, tmp_path / "o.safetensors", base=sd15
    )
    expected = {name: tensor.double() for name, tensor in before.items()}
    for name in one:
        expected[name] = one[name] + two[name] - expected[name]
    making.assert_rounded(making.read(tmp_path / "o.safetensors", sd15), expected)


def test_as_peft_merges_it(sd15: Base, checkpoint: Path, tmp_path: Path) -> None:
    """Linear layers and convolutions, whose magnitudes peft stores as [1, out, 1, 1]; rank-stabilised, with a pattern."""
    from peft import LoraConfig, get_peft_model

    unet = tiny.sd15().unet
    unet.load_state_dict(making.parts("sd15", torch.float32)["unet"])
    config = LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=["to_q", "to_out.0", "conv1", "ff.net.2"],
        rank_pattern={"conv1": 2},
        use_dora=True,
        use_rslora=True,
    )
    tuned = get_peft_model(unet, config)
    random = torch.Generator().manual_seed(0)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            noise = torch.randn(parameter.shape, generator=random)
            parameter.data = parameter.data * (1 + 0.2 * noise.abs()) if "magnitude" in name else 0.1 * noise
    tuned.save_pretrained(tmp_path / "dora")
    wanted: Any = tuned.merge_and_unload().state_dict()
    done = lh.bake(f"{tmp_path}/dora", checkpoint, tmp_path / "out.safetensors", base=sd15)
    assert done.dora_layers == done.layers > 20
    came = making.read(tmp_path / "out.safetensors", sd15)
    for name, tensor in came.items():
        key = name.removeprefix("unet.")
        torch.testing.assert_close(tensor, wanted.get(key, wanted.get(f"{key}.weight")), rtol=1e-5, atol=1e-6)


def test_the_check_runs_a_dora(sd15: Base, tmp_path: Path) -> None:
    model = making.folder(tmp_path / "model", making.parts("sd15"), "sd15")
    kohya_dora(making.read(model, sd15), tmp_path / "dora.safetensors", of_rows=False)
    done = lh.bake(f"{tmp_path}/dora.safetensors", model, tmp_path / "out", base=sd15, check=True)
    assert done.check is not None
    assert done.check.difference < 0.1 * done.check.effect["unet"]


def test_arithmetic_goes_on_refusing_it_and_says_where_it_goes(sd15: Base, checkpoint: Path, tmp_path: Path) -> None:
    kohya_dora(making.read(checkpoint, sd15), tmp_path / "dora.safetensors", of_rows=True)
    with pytest.raises(NotAdditiveError, match="lorahub bake"):
        lh.load(tmp_path / "dora.safetensors", base=sd15)


def test_lengths_of_inputs_of_a_fused_layer_cannot_be_parted(tmp_path: Path) -> None:
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {
        f"{key}.lora_up.weight": torch.zeros(9216, 1),
        f"{key}.lora_down.weight": torch.zeros(1, 3072),
        f"{key}.dora_scale": torch.ones(1, 3072),
    }
    save_file(tensors, tmp_path / "dora.safetensors")
    from lorahub.loading import load_with_magnitudes

    with pytest.raises(NotAdditiveError, match="cannot be parted"):
        load_with_magnitudes(tmp_path / "dora.safetensors", base="flux1")
    save_file({**tensors, f"{key}.dora_scale": torch.arange(9216.0)[:, None]}, tmp_path / "dora.safetensors")
    adapter, magnitudes = load_with_magnitudes(tmp_path / "dora.safetensors", base="flux1")
    assert adapter.layers.keys() == magnitudes.keys()
    k = magnitudes["transformer.transformer_blocks.0.attn.to_k"]
    assert k.of_rows
    assert torch.equal(k.values, torch.arange(3072.0, 6144.0))


@pytest.mark.parametrize("shape", [(3, 1), (1, 7), (16, 16)])
def test_lengths_that_fit_no_side(sd15: Base, checkpoint: Path, tmp_path: Path, shape: tuple[int, int]) -> None:
    key = f"lora_unet_{Q.replace('.', '_')}"
    tensors = {
        f"{key}.lora_up.weight": torch.zeros(8, 1),
        f"{key}.lora_down.weight": torch.zeros(1, 8),
        f"{key}.dora_scale": torch.ones(shape),
    }
    save_file(tensors, tmp_path / "dora.safetensors")
    with pytest.raises(FileFormatError, match="expected a length for each of 8 rows or 8 input channels"):
        lh.bake(f"{tmp_path}/dora.safetensors", checkpoint, tmp_path / "out.safetensors", base=sd15)


def test_a_configuration_that_promises_magnitudes(sd15: Base, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "dora").mkdir()
    key = f"base_model.model.{Q}"
    tensors = {f"{key}.lora_A.weight": torch.ones(1, 8), f"{key}.lora_B.weight": torch.ones(8, 1)}
    save_file(tensors, tmp_path / "dora" / "adapter_model.safetensors")
    (tmp_path / "dora" / "adapter_config.json").write_text(json.dumps({"r": 1, "lora_alpha": 1, "use_dora": True}))
    with pytest.raises(FileFormatError, match="holds no magnitudes"):
        lh.bake(f"{tmp_path}/dora", checkpoint, tmp_path / "out.safetensors", base=sd15)
