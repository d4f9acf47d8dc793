"""Every listed base through every format we write, and our kohya files through the converters of diffusers."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import lorahub as lh
from lorahub import bases
from lorahub.bases.model import Base
from lorahub.errors import UsageError
from lorahub.files.building import from_state_dict
from lorahub.files.loading import load_path
from lorahub.files.saving import save

from . import making

KNOWN = bases.names()


NO_KOHYA_NAME = "transformer_2"
"""The second denoiser of Wan 2.2, which kohya files cannot name."""


def sample(base: Base) -> list[str]:
    """One layer of every kind from the first block that has it, and one from the last."""
    kinds: dict[str, list[str]] = {}
    for part in base.components.values():
        for module in part.layers:
            kinds.setdefault(re.sub(r"\d+", "#", f"{part.name}.{module}"), []).append(f"{part.name}.{module}")
    return [name for names in kinds.values() for name in dict.fromkeys((names[0], names[-1]))]


NOTHING = "(?!)"


def trained(base: Base, *, without: str = NOTHING) -> making.Trained:
    """Random factors for the sample, of mixed ranks and alphas, without the layers that match."""
    names = [name for name in sample(base) if not re.search(without, name)]
    return making.trained(base, names, seed=3, ranks=(1, 3, 2), alphas=(2.0, 1.0, 5.0))


def adapter(base: Base, raw: making.Trained) -> lh.Adapter:
    return from_state_dict(making.peft_keys(raw), base=base, name="style", metadata=making.peft_metadata(raw))


@pytest.fixture(params=KNOWN)
def base(request: pytest.FixtureRequest) -> Base:
    return bases.get(request.param)


def test_every_format_and_back_is_the_same_vector(base: Base, tmp_path: Path) -> None:
    raw = trained(base, without=NO_KOHYA_NAME)
    style = adapter(base, raw)
    expected = making.probed(raw)
    assert making.apart(expected, making.probed(style)) < 1e-12
    for number, form in enumerate(("kohya", "diffusers", "peft", "kohya")):
        path = tmp_path / (f"{number}" if form == "peft" else f"{number}.safetensors")
        saved = save(style, path, format=form, dtype="fp32")
        style = load_path(saved.path)  # the base is detected, or read from what we wrote
        assert style.base == base.name
        assert making.apart(expected, kept(style)) < 1e-6, form


def kept(adapter: lh.Adapter) -> making.Deltas:
    """What the layers do, without those that are zero (a fused file layer, split, gives some)."""
    return {name: answer for name, answer in making.probed(adapter).items() if bool(answer.any())}


def test_offsets_of_every_kind_of_parameter_come_back_from_a_kohya_file(base: Base, tmp_path: Path) -> None:
    """Biases and norms; where layers are fused or halves are swapped, in the rows that belong to them."""
    random = torch.Generator().manual_seed(0)
    offsets: dict[str, Tensor] = {}
    seen = set()
    for part in (part for part in base.components.values() if part.name != NO_KOHYA_NAME):
        lengths = {f"{name}.bias": shape[0] for name, shape in part.layers.items()}
        lengths |= {f"{name}.{kind}": length for name, length in part.norms.items() for kind in ("weight", "bias")}
        for parameter, length in lengths.items():
            kind = re.sub(r"\d+", "#", f"{part.name}.{parameter}")
            if kind not in seen:
                offsets[f"{part.name}.{parameter}"] = torch.randn(length, generator=random)
            seen.add(kind)
    asked = lh.Adapter(base.name, {}, offsets)
    found = load_path(save(asked, tmp_path / "a.safetensors", format="kohya", dtype="fp32").path).offsets
    for name, offset in found.items():
        assert torch.equal(offset, offsets.get(name, torch.zeros_like(offset))), name
    assert offsets.keys() <= found.keys()


def test_a_fused_file_keeps_its_rank_through_other_formats(tmp_path: Path) -> None:
    """One down for q, k and v: they stay one layer of that rank. Different downs: a block-diagonal up, and ranks add."""
    random = torch.Generator().manual_seed(0)
    stem = "lora_unet_double_blocks_3_img_attn_qkv"
    fused = {
        f"{stem}.lora_down.weight": torch.randn(4, 3072, generator=random),
        f"{stem}.lora_up.weight": torch.randn(9216, 4, generator=random),
        f"{stem}.alpha": torch.tensor(2.0),
    }
    expected = 0.5 * (fused[f"{stem}.lora_up.weight"] @ fused[f"{stem}.lora_down.weight"])
    style = load_path(making.written(fused, tmp_path / "fused.safetensors"))
    assert [layer.rank for layer in style.layers.values()] == [4, 4, 4]
    assert torch.allclose(torch.cat([layer.dense() for layer in style.layers.values()]), expected, atol=1e-5)
    dotted = load_path(save(style, tmp_path / "dotted.safetensors", format="diffusers", dtype="fp32").path)
    back = save(dotted, tmp_path / "back.safetensors", format="kohya", dtype="fp32")
    assert shapes(back.path) == {
        f"{stem}.lora_down.weight": [4, 3072],
        f"{stem}.lora_up.weight": [9216, 4],
        f"{stem}.alpha": [],
    }
    turned = {
        name: layer + (layer * 0.5 if name.endswith("to_q") else lh.LowRank.of(layer.up, layer.down + 1))
        for name, layer in dotted.layers.items()
    }
    apart = save(lh.Adapter("flux1", turned), tmp_path / "apart.safetensors", format="kohya", dtype="fp32")
    assert shapes(apart.path)[f"{stem}.lora_down.weight"] == [20, 3072]  # 4 of q, 8 of k, 8 of v
    assert making.apart(making.dense(lh.Adapter("flux1", turned)), making.dense(load_path(apart.path))) < 1e-6


def shapes(path: Path) -> dict[str, list[int]]:
    return {key: entry["shape"] for key, entry in making.header(path).items() if key != "__metadata__"}  # type: ignore[index]


def test_a_second_denoiser_is_written_in_formats_that_can_name_it(tmp_path: Path) -> None:
    base = bases.get("wan-14b")
    raw = trained(base)
    style = adapter(base, raw)
    with pytest.raises(UsageError, match="kohya files cannot name the component transformer_2"):
        save(style, tmp_path / "a.safetensors", format="kohya")
    for form, name in (("diffusers", "a.safetensors"), ("peft", "a")):
        saved = save(style, tmp_path / name, format=form, dtype="fp32")
        assert making.apart(making.probed(raw), making.probed(load_path(saved.path))) < 1e-6


def test_only_some_of_the_layers_that_are_fused_in_kohya_files(tmp_path: Path) -> None:
    """What is left of a qkv by weights or a rank rule: absent parts are zero rows, and come back as no layers."""
    base = bases.get("flux1")
    raw = trained(base, without=r"to_k|add_v_proj|proj_mlp")
    saved = save(adapter(base, raw), tmp_path / "a.safetensors", format="kohya", dtype="fp32")
    assert making.apart(making.probed(raw), kept(load_path(saved.path))) < 1e-6


ORACLES: dict[str, tuple[str, str]] = {
    # base: (pipeline whose `lora_state_dict` converts kohya files, layers that it leaves out)
    "sd15": ("StableDiffusionPipeline", NOTHING),
    "sd2": ("StableDiffusionPipeline", NOTHING),
    "sdxl": ("StableDiffusionXLPipeline", "text_projection"),
    "flux1": ("FluxPipeline", "text_encoder_2"),
    "qwen-image": ("QwenImagePipeline", NOTHING),
    "z-image": ("ZImagePipeline", NOTHING),
    "wan-1.3b": ("WanPipeline", NOTHING),
    "wan-14b": ("WanImageToVideoPipeline", NOTHING),
    "wan22-5b": ("WanPipeline", NOTHING),
}


def converted(name: str, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What diffusers makes of a kohya file: its keys, and the alphas that it has not baked in."""
    pipeline: Any = getattr(diffusers, name)
    if name == "StableDiffusionXLPipeline":
        return pipeline.lora_state_dict(tensors, unet_config=SimpleNamespace(layers_per_block=2))
    if name == "StableDiffusionPipeline":
        return pipeline.lora_state_dict(tensors)
    return pipeline.lora_state_dict(tensors), {}


@pytest.mark.parametrize("name", ORACLES)
def test_diffusers_converts_our_kohya_file_to_our_diffusers_file(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    base = bases.get(name)
    pipeline, without = ORACLES[name]
    raw = trained(base, without=without)
    if name.startswith("wan"):  # the converter counts the blocks it finds, and wants all layers of each
        names = [f"transformer.{module}" for module in base.components["transformer"].layers]
        names = [module for module in names if module.startswith(("transformer.blocks.0.", "transformer.blocks.1."))]
        raw = making.trained(base, names, seed=3, ranks=(1, 3, 2), alphas=(2.0, 1.0, 5.0))
    style = adapter(base, raw)
    tensors = load_file(save(style, tmp_path / "a.safetensors", format="kohya", dtype="fp32").path)
    alpha = max(float(tensor) for key, tensor in tensors.items() if key.endswith(".alpha"))
    found, alphas = converted(pipeline, tensors)
    theirs = from_state_dict(found, base=base)
    if alphas:  # one for all, so that their lookup by name, which fails in attentions, does no harm
        assert set(alphas.values()) == {alpha}
        layers = {key: layer * (alpha / layer.rank) for key, layer in theirs.layers.items()}
        theirs = lh.Adapter(theirs.base, layers)
    assert making.apart(making.probed(raw), kept(theirs)) < 1e-6
