"""What each writable format says: keys, alphas, configurations, and numbers that survive half precision."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import Tensor

from lorahub.algebra import LowRank
from lorahub.bases import get
from lorahub.formats.encode import (
    Encoded,
    balance,
    encode_diffusers,
    encode_kohya,
    encode_peft,
    fused_rows,
    lora_config,
)

ATTN = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"
CLIP = "text_encoder.text_model.encoder.layers.0"
TOKENS = "text_encoder.text_model.embeddings.token_embedding"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer(out: int, inn: int, rank: int, *, shape: tuple[int, ...] | None = None, seed: int = 0) -> LowRank:
    return LowRank.of(random(out, rank, seed=seed), random(rank, inn, seed=seed + 1), shape=shape)


def tensors(encoded: Encoded) -> dict[str, Tensor]:
    """What the file will hold, with every promise of the entries checked."""
    found: dict[str, Tensor] = {}
    for entry in encoded.entries:
        for (key, shape), tensor in zip(entry.tensors, entry.make(), strict=True):
            assert tuple(tensor.shape) == shape
            assert tensor.dtype == entry.dtype
            assert key not in found
            found[key] = tensor
    return found


def product(found: dict[str, Tensor], stem: str) -> Tensor:
    """alpha / rank · up @ down of a kohya module."""
    up, down = found[f"{stem}.lora_up.weight"], found[f"{stem}.lora_down.weight"]
    return float(found[f"{stem}.alpha"]) / down.shape[0] * (up.flatten(1) @ down.flatten(1))


def test_kohya_files_of_a_unet_have_one_alpha_whatever_the_ranks() -> None:
    layers = {f"{ATTN}.to_q": layer(320, 320, 4), f"{ATTN}.to_k": layer(320, 320, 1, seed=2)}
    encoded = encode_kohya(layers, {}, get("sd15"), torch.float32)
    found = tensors(encoded)
    assert {float(tensor) for key, tensor in found.items() if key.endswith(".alpha")} == {4.0}
    assert all(tensor.shape == () for key, tensor in found.items() if key.endswith(".alpha"))
    for name, value in layers.items():
        stem = "lora_" + name.replace(".", "_")
        torch.testing.assert_close(product(found, stem), value.dense(), rtol=1e-5, atol=1e-5)
    assert encoded.metadata == {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "Dynamic",
        "ss_network_alpha": "4",
    }


def test_kohya_files_of_a_transformer_have_alpha_equal_to_the_rank() -> None:
    """diffusers reads those alphas one by one, but takes those of Flux's final layer for the rank, so they are it."""
    layers = {"transformer.proj_out": layer(64, 3072, 2), "transformer.x_embedder": layer(3072, 64, 3)}
    found = tensors(encode_kohya(layers, {}, get("flux1"), torch.float32))
    assert float(found["lora_unet_final_layer_linear.alpha"]) == 2
    assert float(found["lora_unet_img_in.alpha"]) == 3


def test_kohya_prefixes_are_those_of_the_family() -> None:
    encoders = {f"{CLIP}.mlp.fc1": layer(3072, 768, 1)}
    assert "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha" in tensors(
        encode_kohya(encoders, {}, get("sd15"), torch.float32)
    )
    encoders[f"{CLIP}.mlp.fc1".replace("encoder.", "encoder_2.", 1)] = layer(5120, 1280, 1)
    keys = tensors(encode_kohya(encoders, {}, get("sdxl"), torch.float32)).keys()
    assert {re.sub(r"_text_model.*", "", key) for key in keys} == {"lora_te1", "lora_te2"}


@pytest.mark.parametrize(("present", "marked"), [("q_proj", True), ("q_proj out_proj", False), ("fc1", False)])
def test_a_clip_without_output_projections_gets_a_zero_one_so_that_diffusers_knows_it(
    present: str, marked: bool
) -> None:
    sizes = {"q_proj": ("self_attn.q_proj", 768, 768), "out_proj": ("self_attn.out_proj", 768, 768)}
    sizes["fc1"] = ("mlp.fc1", 3072, 768)
    layers = {f"{CLIP}.{sizes[name][0]}": layer(*sizes[name][1:], 2) for name in present.split()}
    found = tensors(encode_kohya(layers, {}, get("sd15"), torch.float16))
    stem = "lora_te_text_model_encoder_layers_0_self_attn_out_proj"
    assert len(found) == 3 * (len(layers) + marked)
    if marked:
        assert not product(found, stem).any()
        assert found[f"{stem}.lora_up.weight"].shape == (768, 1)


def test_convolutions_have_their_kernel_in_down_and_a_1x1_in_up() -> None:
    name = "unet.down_blocks.0.resnets.0.conv1"
    layers = {name: layer(320, 2880, 2, shape=(320, 320, 3, 3))}
    kohya = tensors(encode_kohya(layers, {}, get("sd15"), torch.float32))
    assert kohya["lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight"].shape == (2, 320, 3, 3)
    assert kohya["lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight"].shape == (320, 2, 1, 1)
    dotted = tensors(encode_diffusers(layers, get("sd15"), torch.float32))
    assert dotted[f"{name}.lora_A.weight"].shape == (2, 320, 3, 3)
    assert dotted[f"{name}.lora_B.weight"].shape == (320, 2, 1, 1)


def test_diffusers_files_say_rank_and_alpha_of_every_layer_in_their_metadata() -> None:
    layers = {
        f"{ATTN}.to_q": layer(320, 320, 4),
        f"{ATTN}.to_k": layer(320, 320, 4),
        f"{ATTN}.to_v": layer(320, 320, 2),
        f"{CLIP}.mlp.fc1": layer(3072, 768, 3),
    }
    encoded = encode_diffusers(layers, get("sd15"), torch.float32)
    told = json.loads(encoded.metadata["lora_adapter_metadata"])
    assert (told["unet.r"], told["unet.lora_alpha"]) == (4, 4)
    odd = {f"^{ATTN.removeprefix('unet.')}.to_v": 2}
    assert told["unet.rank_pattern"] == told["unet.alpha_pattern"] == odd
    assert (told["text_encoder.r"], told["text_encoder.rank_pattern"]) == (3, {})
    assert told["text_encoder.target_modules"] == ["encoder.layers.0.mlp.fc1"]
    assert set(tensors(encoded)) == {f"{name}.lora_{half}.weight" for name in layers for half in "AB"}


def test_peft_folders_say_it_in_their_configuration_and_name_their_component() -> None:
    layers = {f"{ATTN}.to_q": layer(320, 320, 4), f"{CLIP}.mlp.fc1": layer(3072, 768, 3)}
    encoded = encode_peft(layers, get("sd15"), torch.float32)
    assert encoded.keys() == {"unet", "text_encoder"}
    assert encoded["unet"].metadata == {"lorahub.component": "unet"}
    assert encoded["unet"].config is not None
    assert encoded["unet"].config["r"] == 4
    module = ATTN.removeprefix("unet.")
    assert set(tensors(encoded["unet"])) == {f"base_model.model.{module}.to_q.lora_{half}.weight" for half in "AB"}


def test_peft_folders_name_clip_modules_as_they_are_in_memory() -> None:
    """transformers 5 took `text_model.` from CLIPTextModel, and left it in CLIPTextModelWithProjection."""
    second = f"{CLIP}.mlp.fc1".replace("encoder.", "encoder_2.", 1)
    layers = {f"{CLIP}.mlp.fc1": layer(3072, 768, 3), second: layer(5120, 1280, 3)}
    for flat, start in ((False, "text_model.encoder"), (True, "encoder")):
        encoded = encode_peft(layers, get("sdxl"), torch.float32, flat_clip=flat)
        assert f"base_model.model.{start}.layers.0.mlp.fc1.lora_A.weight" in tensors(encoded["text_encoder"])
        key = "base_model.model.text_model.encoder.layers.0.mlp.fc1.lora_A.weight"
        assert key in tensors(encoded["text_encoder_2"])


def test_embeddings_are_spelled_as_peft_spells_them() -> None:
    layers = {TOKENS: layer(49408, 768, 2)}
    for found in (
        tensors(encode_diffusers(layers, get("sd15"), torch.float32)),
        {
            f"text_encoder.{key.removeprefix('base_model.model.')}": tensor
            for key, tensor in tensors(encode_peft(layers, get("sd15"), torch.float32)["text_encoder"]).items()
        },
    ):
        assert found.keys() == {f"{TOKENS}.lora_embedding_A", f"{TOKENS}.lora_embedding_B"}
        delta = (found[f"{TOKENS}.lora_embedding_B"] @ found[f"{TOKENS}.lora_embedding_A"]).T  # peft's own formula
        torch.testing.assert_close(delta, layers[TOKENS].dense())


def test_patterns_of_a_configuration_match_their_module_and_no_other() -> None:
    """As peft matches them: `re.match` of `(.*\\.)?(pattern)$`."""
    ranks = {"proj_out": 2, "blocks.1.proj_out": 4, "blocks.11.proj_out": 4, "blocks.2.proj_out": 3}
    config = lora_config(ranks)
    patterns = config["rank_pattern"]
    assert isinstance(patterns, dict)
    for name, rank in ranks.items():
        found = [value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name)]
        assert (found or [config["r"]]) == [rank]
    encoder = lora_config({"text_model.encoder.layers.0.q": 2, "text_model.encoder.layers.1.q": 4})
    patterns = encoder["rank_pattern"]
    assert isinstance(patterns, dict)
    (pattern,) = patterns
    for name in ("text_model.encoder.layers.1.q", "encoder.layers.1.q"):  # with and without the level
        number = 0 if "layers.0" in pattern else 1
        assert bool(re.match(rf"(.*\.)?({pattern})$", name.replace("layers.1", f"layers.{number}")))


def test_offsets_of_fused_layers_are_stacked() -> None:
    block = "transformer.transformer_blocks.0.attn"
    offsets = {f"{block}.to_q.bias": torch.ones(3072), f"{block}.to_v.bias": torch.full((3072,), 3.0)}
    offsets["transformer.norm_out.linear.bias"] = torch.arange(6144.0)
    found = tensors(encode_kohya({}, offsets, get("flux1"), torch.float32))
    qkv = found["lora_unet_double_blocks_0_img_attn_qkv.diff_b"]
    assert torch.equal(qkv, torch.cat([torch.ones(3072), torch.zeros(3072), torch.full((3072,), 3.0)]))
    swapped = found["lora_unet_final_layer_adaLN_modulation_1.diff_b"]  # scale and shift change places
    assert torch.equal(swapped, torch.cat([torch.arange(3072.0, 6144.0), torch.arange(3072.0)]))
    assert found.keys() == {
        "lora_unet_double_blocks_0_img_attn_qkv.diff_b",
        "lora_unet_final_layer_adaLN_modulation_1.diff_b",
    }


def test_fused_layers_cost_the_rows_of_all() -> None:
    rows = fused_rows(get("flux1"))
    assert rows["transformer.transformer_blocks.0.attn.to_q"] == 9216
    assert rows["transformer.single_transformer_blocks.37.proj_mlp"] == 21504
    assert "transformer.proj_out" not in rows
    assert fused_rows(get("sd15")) == {}


@pytest.mark.parametrize(("up_size", "down_size"), [(1e-7, 1e7), (1e6, 1e-6), (1.0, 1.0), (3e-5, 2e2)])
def test_balancing_changes_no_product_and_no_mantissa(up_size: float, down_size: float) -> None:
    up, down = random(6, 3) * up_size, random(3, 5, seed=1) * down_size
    new_up, new_down = balance(up, down)
    assert torch.equal(new_up @ new_down, up @ down)  # powers of two only
    assert torch.equal(torch.frexp(new_up).mantissa, torch.frexp(up).mantissa)
    for sizes in (new_up.abs().amax(0), new_down.abs().amax(1)):  # far from 6e-5 and from 65504
        assert bool(((sizes > 2**-8) & (sizes < 2**12)).all())


def test_balancing_leaves_zeros_alone() -> None:
    up, down = torch.zeros(4, 2), random(2, 5)
    up[:, 0] = 1e-6
    new_up, new_down = balance(up, down)
    assert torch.equal(new_up @ new_down, up @ down)
    assert torch.equal(new_down[1], down[1])
    assert not new_up[:, 1].any()


def test_factors_in_the_wanted_dtype_are_written_as_they_lie_in_memory() -> None:
    up, down = random(64, 2).half(), random(2, 3072).half()
    layers = {"transformer.proj_out": LowRank.of(up, down)}
    for encoded in (
        encode_kohya(layers, {}, get("flux1"), torch.float16),
        encode_diffusers(layers, get("flux1"), torch.float16),
    ):
        made = [tensor for entry in encoded.entries for tensor in entry.make() if tensor.ndim]
        assert [tensor.data_ptr() for tensor in made] == [down.data_ptr(), up.data_ptr()]


@pytest.mark.parametrize("scale", [1.0, 0.8, 1e-6])
def test_a_sum_is_written_as_its_terms_side_by_side(scale: float) -> None:
    """Terms stored in the wanted dtype are copied, others rounded on their own: balanced where they are small."""
    plain = LowRank.of(random(320, 2).half(), random(2, 320, seed=1).half())
    scaled = LowRank.of(random(320, 3, seed=2).half(), random(3, 320, seed=3).half(), scale=scale)
    layers = {f"{ATTN}.to_q": plain + scaled}
    _, entry = encode_kohya(layers, {}, get("sd15"), torch.float16).entries
    down, up = entry.make()
    assert torch.equal(up[:, :2], plain.blocks[0].up)
    assert torch.equal(down[:2], plain.blocks[0].down)
    asked = scaled.dense(torch.float64)
    assert float((up[:, 2:].double() @ down[2:].double() - asked).norm()) <= 5e-4 * float(asked.norm())
    if scale == 1.0:
        assert torch.equal(up[:, 2:], scaled.blocks[0].up)


@pytest.mark.parametrize("scale", [0.8, -1 / 3, 2.0**-5, 1.0000001])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scaled_halves_are_rounded_once_from_single_precision(dtype: torch.dtype, scale: float) -> None:
    every = torch.arange(2**16).short().view(dtype)
    numbers = every[every.abs() < 1000]
    up = torch.stack((numbers, torch.ones_like(numbers)), dim=1)
    down = torch.ones(2, 3, dtype=dtype)
    layers = {"lora_unet_some_layer": LowRank.of(up, down, scale=scale)}
    _, entry = encode_kohya(layers, {}, None, dtype).entries
    made_down, made_up = entry.make()
    assert torch.equal(made_up.view(torch.int16), (up.float() * scale).to(dtype).view(torch.int16))
    assert torch.equal(made_down, down)


def test_entries_make_nothing_before_they_are_asked() -> None:
    """So a file can be planned whatever its size, and written one layer at a time."""

    class Unmade:
        shape = (320, 320)
        rank = 4
        stored_dtype = None
        terms = ()

        def factors(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
            raise AssertionError("made too early")

    layers = {f"{ATTN}.to_{x}": Unmade() for x in "qk"}
    assert len(encode_kohya(layers, {}, get("sd15"), torch.float16).entries) == 4
    assert len(encode_diffusers(layers, get("sd15"), torch.float16).entries) == 2
