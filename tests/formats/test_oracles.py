"""Files as PEFT and diffusers write them, and the answers of those libraries, against ours."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorahub.bases import get
from lorahub.bases.model import flatten
from lorahub.formats.decode import Decoded, decode
from lorahub.formats.layout import Layout, parse

from .samples import RANK, kohya, pair, random

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the libraries' own deprecations are not ours to fail on
    import peft
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from diffusers.loaders import lora_conversion_utils
    from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft

ATTN = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"


def shapes_of(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def decode_all(tensors: dict[str, Tensor], **settings: Any) -> tuple[Layout, dict[str, Decoded]]:
    layout = parse(shapes_of(tensors), **settings)
    assert not layout.unknown
    return layout, {module.name: decode(module, tensors) for module in layout.modules}


def product(result: Decoded) -> Tensor:
    ((up, down, scale),) = result.factors
    return scale * up.double() @ down.double()


class Net(nn.Module):
    """One module of each kind that PEFT adapts."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 24)
        self.block = nn.ModuleDict({"q": nn.Linear(24, 36), "k": nn.Linear(24, 36), "out": nn.Linear(36, 24)})
        self.conv = nn.Conv2d(8, 12, 3)
        self.point = nn.Conv2d(8, 12, 1)


LINEAR = ["q", "k", "out"]
CONVS = ["conv", "point"]
CONFIGS = {
    "lora": peft.LoraConfig(r=4, lora_alpha=6, target_modules=[*LINEAR, *CONVS, "tokens"]),
    "lora default alpha": peft.LoraConfig(r=4, target_modules=LINEAR),
    "lora rslora": peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=[*LINEAR, *CONVS, "tokens"]),
    "lora patterns": peft.LoraConfig(
        r=4,
        lora_alpha=6,
        rank_pattern={"^block.q": 2, "o.*": 3, "conv": 5},
        alpha_pattern={"k": 1, "block.*": 7, "^conv$": 2},
        target_modules=[*LINEAR, *CONVS],
    ),
    "loha": peft.LoHaConfig(r=3, alpha=5, target_modules=[*LINEAR, *CONVS], rank_pattern={"q": 2}),
    "loha tucker": peft.LoHaConfig(r=2, alpha=5, use_effective_conv2d=True, target_modules=[*LINEAR, *CONVS]),
    "lokr": peft.LoKrConfig(r=1, alpha=5, target_modules=[*LINEAR, *CONVS], alpha_pattern={"block.q": 3}),
    "lokr both": peft.LoKrConfig(
        r=1, alpha=5, decompose_both=True, decompose_factor=4, target_modules=[*LINEAR, *CONVS]
    ),
    "lokr tucker": peft.LoKrConfig(r=1, alpha=5, use_effective_conv2d=True, target_modules=[*LINEAR, *CONVS]),
    "lokr whole": peft.LoKrConfig(r=16, alpha=5, target_modules=[*LINEAR, *CONVS]),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.filterwarnings("ignore")
def test_saved_peft_adapters_decode_to_their_delta_weight(config: peft.PeftConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = peft.get_peft_model(Net(), config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
            assert "default" in name
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    layout, deltas = decode_all(tensors, config=json.loads((tmp_path / "adapter_config.json").read_text()))
    assert layout.format == "peft"
    # reloaded, because saving sorts the patterns, which can change the first that matches
    reloaded = peft.PeftModel.from_pretrained(Net(), str(tmp_path))
    adapted = {
        name.removeprefix("base_model.model."): module
        for name, module in reloaded.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert adapted.keys() == deltas.keys()
    for name, module in adapted.items():
        expected = module.get_delta_weight("default").detach().double()
        torch.testing.assert_close(product(deltas[name]), expected.flatten(1), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_the_bias_of_a_saved_lora_is_what_peft_merges(tmp_path: Path) -> None:
    model = peft.get_peft_model(Net(), peft.LoraConfig(r=4, lora_alpha=6, lora_bias=True, target_modules=["q"]))
    for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
        nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    before = model.base_model.model.block["q"].base_layer.bias.detach().clone()
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    _, deltas = decode_all(load_file(tmp_path / "adapter_model.safetensors"), config=config)
    merged = model.merge_and_unload().block["q"].bias.detach()
    torch.testing.assert_close(deltas["block.q"].bias_offset, merged - before)


@pytest.mark.filterwarnings("ignore")
def test_what_diffusers_saves_with_its_metadata_decodes_to_what_it_applies(tmp_path: Path) -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        sample_size=8,
    )
    unet.add_adapter(
        peft.LoraConfig(
            r=4,
            lora_alpha=6,
            target_modules=["to_q", "to_out.0", "net.0.proj", "conv1"],
            rank_pattern={r"down_blocks\..*to_q": 2},
            alpha_pattern={"mid_block.*": 3},
        )
    )
    for parameter in (parameter for parameter in unet.parameters() if parameter.requires_grad):
        nn.init.normal_(parameter)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=peft.get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
    )
    file = tmp_path / "pytorch_lora_weights.safetensors"
    length = int.from_bytes(file.read_bytes()[:8], "little")
    metadata = json.loads(file.read_bytes()[8 : 8 + length])["__metadata__"]
    layout, deltas = decode_all(load_file(file), metadata=metadata)
    assert (layout.format, layout.notes) == ("diffusers", ())
    adapted = {name: module for name, module in unet.named_modules() if hasattr(module, "get_delta_weight")}
    assert adapted.keys() == deltas.keys()
    assert len({result.factors[0][2] for result in deltas.values()}) == 3
    for name, module in adapted.items():
        expected = module.get_delta_weight("default").detach().double()
        torch.testing.assert_close(product(deltas[name]), expected.flatten(1), rtol=1e-5, atol=1e-5)


def old_diffusers() -> dict[str, Tensor]:
    """The attention processors of an SD 1.5 UNet and a text encoder's, as diffusers 0.13 to 0.20 wrote them."""
    unet = [f"{ATTN}.processor.{x}_lora" for x in ("to_q", "to_k", "to_v", "to_out")]
    encoder = [f"text_model.encoder.layers.3.self_attn.{x}_lora" for x in ("to_q", "to_k", "to_v", "to_out")]
    stems = [*(f"unet.{stem}" for stem in unet), *(f"text_encoder.{stem}" for stem in encoder)]
    return random(
        {key: shape for stem in stems for key, shape in pair(f"{stem}.up.weight", f"{stem}.down.weight").items()}
    )


def new_diffusers() -> dict[str, Tensor]:
    """The spelling after that: `.lora.` in the UNet, `.lora_linear_layer.` in the text encoder, lora_A for the rest."""
    stems = [f"unet.{ATTN}.{x}.lora" for x in ("to_q", "to_k", "to_v", "to_out.0")]
    stems += [
        f"text_encoder.text_model.encoder.layers.3.self_attn.{x}_proj.lora_linear_layer" for x in ("q", "k", "v", "out")
    ]
    stems += ["text_encoder.text_model.encoder.layers.3.mlp.fc1.lora_linear_layer"]
    shapes = {key: shape for stem in stems for key, shape in pair(f"{stem}.up.weight", f"{stem}.down.weight").items()}
    return random(shapes | pair("unet.conv_in.lora_B.weight", "unet.conv_in.lora_A.weight"))


@pytest.mark.parametrize("tensors", [old_diffusers(), new_diffusers()], ids=["old", "new"])
def test_modules_of_diffusers_files_are_named_as_diffusers_names_them(tensors: dict[str, Tensor]) -> None:
    ours = {
        (module.prefix, module.name, half): key
        for module in parse(shapes_of(tensors)).modules
        for half, key in module.parts.items()
    }
    for prefix, convert in (("unet", convert_unet_state_dict_to_peft), ("text_encoder", convert_state_dict_to_peft)):
        part = {
            key.removeprefix(f"{prefix}."): tensor for key, tensor in tensors.items() if key.startswith(f"{prefix}.")
        }
        theirs = convert(part)
        for key, tensor in theirs.items():
            name, half = key.removesuffix(".weight").rsplit(".", 1)
            assert tensors[ours.pop((prefix, name, {"lora_A": "down", "lora_B": "up"}[half]))] is tensor
    assert not ours


def kohya_sd() -> Iterator[str]:
    for x in ("attn1_to_q", "attn1_to_k", "attn2_to_v", "attn2_to_out_0", "ff_net_0_proj", "ff_net_2"):
        yield f"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_{x}"
    yield from ("lora_unet_down_blocks_1_attentions_0_proj_in", "lora_unet_up_blocks_3_resnets_2_conv_shortcut")
    for encoder in ("lora_te1", "lora_te2"):
        for x in ("self_attn_q_proj", "self_attn_out_proj", "mlp_fc1"):
            yield f"{encoder}_text_model_encoder_layers_3_{x}"


def test_kohya_and_what_diffusers_converts_it_to_are_the_same_modules_and_scales() -> None:
    tensors: dict[str, Tensor] = {}
    for number, stem in enumerate(kohya_sd()):
        tensors |= random(kohya(stem), alpha=float(number + 1))
    layout, _ = decode_all(tensors)
    assert layout.format == "kohya"
    converted, alphas = lora_conversion_utils._convert_non_diffusers_lora_to_diffusers(dict(tensors))
    theirs, _ = decode_all(converted)
    prefixes = {"lora_unet": "unet", "lora_te1": "text_encoder", "lora_te2": "text_encoder_2"}

    def by_name(modules: Any, keys: dict[str, Tensor]) -> dict[tuple[str, str], Tensor]:
        return {(prefixes.get(m.prefix, m.prefix), flatten(m.name)): keys[m.parts["down"]] for m in modules}

    ours_by_name, theirs_by_name = by_name(layout.modules, tensors), by_name(theirs.modules, converted)
    assert ours_by_name.keys() == theirs_by_name.keys()
    assert all(ours_by_name[name] is theirs_by_name[name] for name in ours_by_name)
    assert sorted(alphas.values()) == sorted(float(tensors[m.parts["alpha"]]) for m in layout.modules)


def test_xlabs_modules_are_the_ones_diffusers_splits() -> None:
    shapes = {}
    for n, x, out in ((1, "qkv", 9216), (2, "qkv", 9216), (1, "proj", 3072), (2, "proj", 3072)):
        stem = f"double_blocks.5.processor.{x}_lora{n}"
        shapes |= pair(f"{stem}.up.weight", f"{stem}.down.weight", RANK, out, 3072)
    tensors = random(shapes)
    converted = lora_conversion_utils._convert_xlabs_flux_lora_to_diffusers(dict(tensors))
    base = get("flux1")
    found = {}
    for module in parse(shapes).modules:
        row = 0
        for span in base.find(module.prefix, module.name) or ():
            found[span.layer] = tensors[module.parts["up"]][row : row + span.stop - span.start]
            row += span.stop - span.start
    assert {f"{layer}.lora_B.weight" for layer in found} == {key for key in converted if "lora_B" in key}
    assert all(torch.equal(converted[f"{layer}.lora_B.weight"], rows) for layer, rows in found.items())


def test_a_saved_file_with_integer_alpha_reads(tmp_path: Path) -> None:
    tensors = random(kohya("lora_unet_conv_in")) | {"lora_unet_conv_in.alpha": torch.tensor(2)}
    save_file(tensors, tmp_path / "a.safetensors")
    _, deltas = decode_all(load_file(tmp_path / "a.safetensors"))
    assert deltas["conv_in"].factors[0][2] == 2 / RANK
