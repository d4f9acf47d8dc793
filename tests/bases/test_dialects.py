"""Every alias means what the converters of diffusers make of it, row by row.

The converters are given state dicts spelled with our aliases, whose tensors say which row of which module they are; what
comes out must be the canonical modules with their rows in place.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from lorahub.bases import Component, flatten, get

torch = pytest.importorskip("torch")
lora = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
single_file = pytest.importorskip("diffusers.loaders.single_file_utils")

Weights = dict[str, Any]
_UNETS = ("sd15", "sd2", "sdxl", "ssd-1b")


def _numbered(part: Component) -> Weights:
    """A vector for every module: its rows, numbered so that no number occurs twice."""
    rows = {module: shape[0] for module, shape in part.layers.items()} | dict(part.norms)
    weights, start = {}, 0
    for module, length in rows.items():
        weights[module] = torch.arange(start, start + length, dtype=torch.int32)
        start += length
    return weights


def _spelled(part: Component, dialect: str) -> Weights:
    """The same numbers under the names of a dialect, with the modules it does not rename under their own."""
    numbers = _numbered(part)
    aliased = part.aliases[dialect]
    renamed = {span.layer for spans in aliased.values() for span in spans}
    spelled = {
        alias: torch.cat([numbers[span.layer][span.start : span.stop] for span in spans])
        for alias, spans in aliased.items()
    }
    return spelled | {module: rows for module, rows in numbers.items() if module not in renamed}


def _checkpoint(part: Component, dialect: str) -> Weights:
    """An original checkpoint: BFL call the weight of a norm `scale`; every weight gets a bias, which converters want."""
    checkpoint: Weights = {}
    for module, rows in _spelled(part, dialect).items():
        checkpoint[module + (".scale" if module.endswith(("query_norm", "key_norm")) else ".weight")] = rows
        if not module.endswith(("_norm", "ln_q", "ln_k")):
            checkpoint[f"{module}.bias"] = rows
    return checkpoint


def _same(converted: Weights, expected: Weights) -> None:
    assert {name for name in converted if name not in expected} == set()
    assert {name for name in expected if name not in converted} == set()
    assert [name for name in expected if not torch.equal(converted[name].flatten(), expected[name])] == []


@pytest.mark.parametrize("base", _UNETS)
def test_sgm_names_are_those_of_original_unets(base: str) -> None:
    part = get(base).components["unet"]
    checkpoint = {f"model.diffusion_model.{name}": rows for name, rows in _checkpoint(part, "sgm").items()}
    config = {
        "layers_per_block": 2,
        "class_embed_type": None,
        "addition_embed_type": "text_time" if base in ("sdxl", "ssd-1b") else None,
    }
    # The converter also asks for weights that no model has and stores None for them.
    converted = single_file.convert_ldm_unet_checkpoint(checkpoint, config)
    weights = {
        name.removesuffix(".weight"): rows
        for name, rows in converted.items()
        if name.endswith(".weight") and rows is not None
    }
    _same(weights, _numbered(part))


@pytest.mark.parametrize("base", ["sdxl", "ssd-1b"])
def test_sgm_names_are_those_of_kohya_files(base: str) -> None:
    part = get(base).components["unet"]
    numbers = _numbered(part)
    state = {
        f"lora_unet_{flatten(alias)}.{half}": numbers[spans[0].layer]
        for alias, spans in part.aliases["sgm"].items()
        if spans[0].layer in part.layers
        for half in ("lora_down.weight", "lora_up.weight")
    }
    state = lora._maybe_map_sgm_blocks_to_diffusers(state, SimpleNamespace(layers_per_block=2))
    converted, _ = lora._convert_non_diffusers_lora_to_diffusers(state)
    names = {
        name.removeprefix("unet.").replace(".processor", "").replace("to_out_lora", "to_out.0_lora"): rows
        for name, rows in converted.items()
        if name.endswith(".down.weight")
    }
    # q, k, v and out become `to_q_lora.down`, all others `proj_in.lora.down`.
    modules = {name.removesuffix(".down.weight")[:-5]: rows for name, rows in names.items()}
    _same(modules, {module: rows for module, rows in numbers.items() if module in part.layers})


def test_canonical_names_are_those_of_sd15_kohya_files() -> None:
    part = get("sd15").components["unet"]
    numbers = {module: rows for module, rows in _numbered(part).items() if module in part.layers}
    halves = ("lora_down.weight", "lora_up.weight")
    state = {f"lora_unet_{flatten(module)}.{half}": rows for module, rows in numbers.items() for half in halves}
    converted, _ = lora._convert_non_diffusers_lora_to_diffusers(state)
    names = {
        name.replace(".processor", "").replace("to_out_lora", "to_out.0_lora"): rows for name, rows in converted.items()
    }
    modules = {n.removeprefix("unet.").removesuffix(".down.weight")[:-5]: r for n, r in names.items() if ".down." in n}
    _same(modules, numbers)


@pytest.mark.parametrize(
    ("base", "dialect", "convert"),
    [
        ("flux1", "bfl", single_file.convert_flux_transformer_checkpoint_to_diffusers),
        ("sd3", "mmdit", single_file.convert_sd3_transformer_checkpoint_to_diffusers),
        ("sd35-medium", "mmdit", single_file.convert_sd3_transformer_checkpoint_to_diffusers),
        ("sd35-large", "mmdit", single_file.convert_sd3_transformer_checkpoint_to_diffusers),
        ("z-image", "z-image", single_file.convert_z_image_transformer_checkpoint_to_diffusers),
        ("wan-14b", "wan", single_file.convert_wan_transformer_to_diffusers),
        ("wan-1.3b", "wan", single_file.convert_wan_transformer_to_diffusers),
        ("wan22-5b", "wan", single_file.convert_wan_transformer_to_diffusers),
    ],
)
def test_dialects_are_those_of_original_checkpoints(
    base: str, dialect: str, convert: Callable[[Weights], Weights]
) -> None:
    part = get(base).components["transformer"]
    checkpoint = _checkpoint(part, dialect)
    if dialect == "mmdit":
        checkpoint["pos_embed"] = torch.zeros(1)
    converted = convert(checkpoint)
    weights = {n.removesuffix(".weight"): rows for n, rows in converted.items() if n.endswith(".weight")}
    _same(weights, _numbered(part))


def test_bfl_names_are_those_of_kohya_flux_files() -> None:
    part = get("flux1").components["transformer"]
    numbers = {module: rows for module, rows in _numbered(part).items() if module in part.layers}
    state: Weights = {}
    for alias, rows in _spelled(part, "bfl").items():
        if "norm" not in alias.rsplit(".", 1)[-1]:
            state[f"lora_unet_{flatten(alias)}.lora_up.weight"] = rows[:, None].to(torch.float32)
            state[f"lora_unet_{flatten(alias)}.lora_down.weight"] = torch.ones(1, 1)
    converted = lora._convert_kohya_flux_lora_to_diffusers(state)
    ups = {
        name.removeprefix("transformer.").removesuffix(".lora_B.weight"): rows.to(torch.int32)
        for name, rows in converted.items()
        if name.endswith(".lora_B.weight")
    }
    _same(ups, numbers)


def test_xlabs_qkv_of_a_single_block() -> None:
    part = get("flux1").components["transformer"]
    numbers = _numbered(part)
    spans = part.aliases["xlabs"]["single_blocks.3.linear1_qkv"]
    rows = torch.cat([numbers[span.layer][span.start : span.stop] for span in spans])
    state = {
        "single_blocks.3.processor.qkv_lora.down.weight": torch.ones(1, 1),
        "single_blocks.3.processor.qkv_lora.up.weight": rows[:, None].to(torch.float32),
    }
    converted = lora._convert_xlabs_flux_lora_to_diffusers(state)
    ups = {
        name.removeprefix("transformer.").removesuffix(".lora_B.weight"): up.to(torch.int32)
        for name, up in converted.items()
        if name.endswith(".lora_B.weight")
    }
    _same(ups, {span.layer: numbers[span.layer] for span in spans})


@pytest.mark.parametrize("base", ["wan-14b", "wan-1.3b"])
def test_wan_names_are_those_of_comfy_files(base: str) -> None:
    part = get(base).components["transformer"]
    numbers = {m: rows for m, rows in _numbered(part).items() if m in part.layers and m != "patch_embedding"}
    state = {
        f"diffusion_model.{alias}.{half}.weight": numbers[spans[0].layer]
        for alias, spans in part.aliases["wan"].items()
        if spans[0].layer in numbers
        for half in ("lora_A", "lora_B")
    }
    converted = lora._convert_non_diffusers_wan_lora_to_diffusers(state)
    modules = {
        name.removeprefix("transformer.").removesuffix(".lora_A.weight"): rows
        for name, rows in converted.items()
        if name.endswith(".lora_A.weight")
    }
    _same(modules, numbers)


def test_z_image_names_are_those_of_original_and_musubi_files() -> None:
    part = get("z-image").components["transformer"]
    numbers = {m: rows for m, rows in _numbered(part).items() if m.startswith("layers.") and m in part.layers}
    fused = {a: r for a, r in _spelled(part, "z-image").items() if a.startswith("layers.") and "norm" not in a}
    for spelled in (fused, numbers):
        state: Weights = {}
        for module, rows in spelled.items():
            state[f"lora_unet_{flatten(module)}.lora_up.weight"] = rows[:, None].to(torch.float32)
            state[f"lora_unet_{flatten(module)}.lora_down.weight"] = torch.ones(1, 1)
        converted = lora._convert_non_diffusers_z_image_lora_to_diffusers(state)
        ups = {
            name.removeprefix("transformer.").removesuffix(".lora_B.weight"): rows.to(torch.int32)
            for name, rows in converted.items()
            if name.endswith(".lora_B.weight")
        }
        _same(ups, numbers)


def test_qwen_names_are_those_of_musubi_files() -> None:
    part = get("qwen-image").components["transformer"]
    numbers = {module: rows for module, rows in _numbered(part).items() if module in part.layers}
    state: Weights = {}
    for module, rows in numbers.items():
        state[f"lora_unet_{flatten(module)}.lora_up.weight"] = rows[:, None].to(torch.float32)
        state[f"lora_unet_{flatten(module)}.lora_down.weight"] = torch.ones(1, 1)
    converted = lora._convert_non_diffusers_qwen_lora_to_diffusers(state)
    ups = {
        name.removeprefix("transformer.").removesuffix(".lora_B.weight"): rows.to(torch.int32)
        for name, rows in converted.items()
        if name.endswith(".lora_B.weight")
    }
    _same(ups, numbers)


def test_text_encoder_names_are_those_of_transformers() -> None:
    import transformers

    with torch.device("meta"):
        config = transformers.CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
        model = transformers.CLIPTextModel(config)
    base = get("sd15")
    for name, module in model.named_modules():
        if module._parameters.get("weight") is not None:
            spans = base.find("text_encoder", name)
            assert spans is not None
            assert spans[0].layer == f"text_encoder.text_model.{name.removeprefix('text_model.')}"


def test_omi_numbers_the_parts_of_fused_layers() -> None:
    flux = get("flux1")
    found = flux.find("transformer", "double_blocks.2.txt_attn.qkv.1")
    assert found is not None
    assert [span.layer for span in found] == ["transformer.transformer_blocks.2.attn.add_k_proj"]
    found = flux.find("transformer", "single_blocks.5.linear1.3")
    assert found is not None
    assert [span.layer for span in found] == ["transformer.single_transformer_blocks.5.proj_mlp"]
