"""A checkpoint in any spelling is read as diffusers' own converters read it, and every key is accounted for."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lorahub import bases
from lorahub.bases.live import describe
from lorahub.checkpoints import Checkpoint, open_checkpoint
from lorahub.errors import BaseMismatchError, FileFormatError, LorahubError, NotFoundError, UsageError
from tests.checkpoints import making
from tests.files import tiny

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import FluxTransformer2DModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_open_clip_checkpoint

Parts = Mapping[str, Mapping[str, Tensor]]


@pytest.fixture(scope="module")
def sd15() -> Parts:
    return {name: making.weights(model) for name, model in tiny.models(tiny.sd15()).items()}


def canonical(component: str, key: str) -> str:
    """The canonical name of a parameter of a small pipeline."""
    named = key.startswith(("text_model.", "text_projection")) or not component.startswith("text_encoder")
    return f"{component}.{key if named else f'text_model.{key}'}"


def assert_holds(checkpoint: Checkpoint, parts: Parts) -> None:
    """Every parameter is there, in the base's shape and with the same bits, and nothing else is."""
    expected = {canonical(part, key): tensor for part, tensors in parts.items() for key, tensor in tensors.items()}
    expected = {name: tensor for name, tensor in expected.items() if not name.endswith("position_ids")}
    found = {f"{name}.weight": name for name in checkpoint.layers} | {name: name for name in checkpoint.vectors}
    assert found.keys() == expected.keys()
    for parameter, name in found.items():
        tensor = checkpoint.read(name)
        assert tensor.dtype == expected[parameter].dtype
        assert torch.equal(tensor.float(), expected[parameter].float()), parameter


def test_diffusers_folder(tmp_path: Path, sd15: Parts) -> None:
    pipe = tiny.sd15()
    pipe.save_pretrained(tmp_path / "model")
    base = tiny.base("sd15")
    checkpoint = open_checkpoint(tmp_path / "model", base=base)
    assert_holds(checkpoint, sd15)
    assert (checkpoint.base, checkpoint.others, checkpoint.notes) == ("tiny-sd15", (), ())
    assert set(checkpoint.layers) == {
        f"{part.name}.{module}" for part in base.components.values() for module in (*part.layers, *part.embeddings)
    }
    embeddings = [name for name, stored in checkpoint.layers.items() if stored.embedding]
    assert [name.rpartition(".")[2] for name in embeddings] == ["position_embedding", "token_embedding"]


def test_folder_of_a_base_that_is_not_listed(tmp_path: Path, sd15: Parts) -> None:
    checkpoint = open_checkpoint(making.folder(tmp_path, sd15))
    assert checkpoint.base == "unlisted:dotted"
    assert_holds(checkpoint, sd15)
    assert "no listed base fits" in checkpoint.evidence[0]
    assert sum(stored.embedding for stored in checkpoint.layers.values()) == 2


def test_single_file_of_stability(tmp_path: Path, sd15: Parts) -> None:
    base = tiny.base("sd15")
    tensors = making.ldm(sd15["unet"], base)
    config: Any = dict(tiny.sd15().unet.config)
    converted = convert_ldm_unet_checkpoint(dict(tensors), config)
    assert converted.keys() == sd15["unet"].keys()
    tensors |= {f"cond_stage_model.transformer.text_model.{k}": v for k, v in sd15["text_encoder"].items()}
    tensors |= {"first_stage_model.encoder.conv_in.weight": torch.zeros(4, 3, 3, 3), "betas": torch.zeros(7)}
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path / "model.safetensors", base=base)
    assert_holds(checkpoint, {"unet": converted, "text_encoder": sd15["text_encoder"]})
    assert {key for _, key in checkpoint.others} == {"first_stage_model.encoder.conv_in.weight", "betas"}
    assert checkpoint.name == "model"
    assert len(checkpoint.parts) + len(checkpoint.others) == len(tensors)


def test_single_file_with_open_clip(tmp_path: Path) -> None:
    pipe = tiny.sdxl()
    parts = {name: making.weights(model) for name, model in tiny.models(pipe).items()}
    base = tiny.base("sdxl")
    prefix = "conditioner.embedders.1.model."
    encoder = making.open_clip(parts["text_encoder_2"], prefix)
    converted = convert_open_clip_checkpoint(pipe.text_encoder_2, dict(encoder), prefix)
    assert converted.keys() == parts["text_encoder_2"].keys()
    tensors = making.ldm(parts["unet"], base) | encoder
    tensors |= {f"conditioner.embedders.0.transformer.text_model.{k}": v for k, v in parts["text_encoder"].items()}
    tensors[f"{prefix}logit_scale"] = torch.ones(1)
    save_file(tensors, tmp_path / "xl.safetensors")
    checkpoint = open_checkpoint(tmp_path / "xl.safetensors", base=base)
    assert_holds(checkpoint, {**parts, "text_encoder_2": converted})
    query = checkpoint.layers["text_encoder_2.text_model.encoder.layers.1.self_attn.k_proj"].rows[0]
    assert (query.key, query.at) == (f"{prefix}transformer.resblocks.1.attn.in_proj_weight", tiny.WIDTH)
    assert checkpoint.layers["text_encoder_2.text_projection"].rows[0].transposed
    [*fused] = checkpoint.parts[query.file, query.key]
    assert [(rows.start, rows.stop, rows.at) for _, rows in fused] == [(0, 16, 0), (0, 16, 16), (0, 16, 32)]


def test_fused_layers_and_swapped_halves_of_flux(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=6,
        in_channels=4,
        axes_dims_rope=(2, 2, 4),
    )
    base = describe("tiny-flux", {"transformer": model}, like="flux1")
    own = making.weights(model)
    single = "single_transformer_blocks.0"
    fused = {
        f"{kind}.single_blocks.0.linear1": torch.cat([own[f"{single}.{part}.{kind}"] for part in parts])
        for kind in ("weight", "bias")
        for parts in [("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
    }
    scale, shift = own["norm_out.linear.weight"].chunk(2)
    tensors = {
        "single_blocks.0.linear1.weight": fused["weight.single_blocks.0.linear1"],
        "single_blocks.0.linear1.bias": fused["bias.single_blocks.0.linear1"],
        "final_layer.adaLN_modulation.1.weight": torch.cat([shift, scale]),
        "img_in.weight": own["x_embedder.weight"],
    }
    for start in ("", "model.diffusion_model."):
        save_file({start + key: value for key, value in tensors.items()}, tmp_path / "flux.safetensors")
        checkpoint = open_checkpoint(tmp_path / "flux.safetensors", base=base)
        assert len(checkpoint.layers) == 6
        for name in checkpoint.layers:
            assert torch.equal(checkpoint.read(name), own[f"{name.removeprefix('transformer.')}.weight"])
        for name in checkpoint.vectors:
            assert torch.equal(checkpoint.read(name), own[name.removeprefix("transformer.")])


def real_names(name: str) -> dict[str, tuple[int, ...]]:
    """Every UNet weight of a listed base as a single file names it, with its real shape."""
    component = bases.get(name).components["unet"]
    alias = {spans[0].layer: module for module, spans in component.aliases["sgm"].items()}
    return {f"{making.LDM}{alias.get(module, module)}.weight": shape for module, shape in component.layers.items()}


@pytest.mark.parametrize("name", ["sd15", "sd2", "sdxl", "ssd-1b"])
def test_base_is_detected(tmp_path: Path, name: str) -> None:
    shapes = real_names(name) | {"first_stage_model.decoder.conv_out.weight": (3, 128, 3, 3)}
    single = open_checkpoint(making.hollow(tmp_path / "model.safetensors", shapes))
    assert single.base == name
    assert len(single.layers) == len(shapes) - 1
    assert all(stored.shape == bases.get(name).shape(layer) for layer, stored in single.layers.items())
    component = bases.get(name).components["unet"]
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    plain = {f"{module}.weight": shape for module, shape in component.layers.items()}
    making.hollow(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", plain)
    for path in (tmp_path, tmp_path / "unet", tmp_path / "unet" / "diffusion_pytorch_model.safetensors"):
        if path == tmp_path:
            (tmp_path / "model.safetensors").rename(tmp_path / "other")
        found = open_checkpoint(path)
        assert (found.base, found.layers.keys()) == (name, single.layers.keys())
    (tmp_path / "text_encoder").mkdir()
    strange = {f"model.layers.{number}.mlp.up_proj.weight": (8, 8) for number in range(400)}
    making.hollow(tmp_path / "text_encoder" / "model.safetensors", strange)
    found = open_checkpoint(tmp_path)
    assert (found.base, found.layers.keys(), len(found.others)) == (name, single.layers.keys(), 400)
    assert found.notes[0].startswith(f"400 tensors are of no layer of {name}, such as model.layers.0.mlp.up_proj")


def test_projections_may_be_linear_or_1x1_convolutions(tmp_path: Path) -> None:
    shapes = real_names("sd15")
    key = f"{making.LDM}input_blocks.1.1.proj_in.weight"
    assert shapes[key] == (320, 320, 1, 1)
    checkpoint = open_checkpoint(making.hollow(tmp_path / "a.safetensors", shapes | {key: (320, 320)}))
    assert checkpoint.base == "sd15"
    assert checkpoint.read("unet.down_blocks.0.attentions.0.proj_in").shape == (320, 320, 1, 1)


def test_extra_input_channels_are_said(tmp_path: Path) -> None:
    shapes = real_names("sd15") | {f"{making.LDM}input_blocks.0.0.weight": (320, 9, 3, 3)}
    checkpoint = open_checkpoint(making.hollow(tmp_path / "inpainting.safetensors", shapes))
    assert checkpoint.base == "sd15"
    assert "unet.conv_in" not in checkpoint.layers
    assert checkpoint.notes[0].startswith("1 tensors have other sizes than in sd15, such as")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64])
def test_precisions(tmp_path: Path, sd15: Parts, dtype: torch.dtype) -> None:
    parts = {name: {key: value.to(dtype) for key, value in part.items()} for name, part in sd15.items()}
    assert_holds(open_checkpoint(making.folder(tmp_path, parts)), parts)


@pytest.mark.parametrize("index", [True, False])
def test_shards(tmp_path: Path, sd15: Parts, index: bool) -> None:
    making.sharded(tmp_path / "unet", "diffusion_pytorch_model", sd15["unet"], 3, index=index)
    making.sharded(tmp_path / "text_encoder", "model", sd15["text_encoder"], 2, index=index)
    checkpoint = open_checkpoint(tmp_path)
    assert len(checkpoint.files) == 5
    assert_holds(checkpoint, sd15)
    shard = tmp_path / "unet" / "diffusion_pytorch_model-00002-of-00003.safetensors"
    with pytest.raises(UsageError, match="one of 3 shards: name the folder"):
        open_checkpoint(shard)
    shard.unlink()
    with pytest.raises(NotFoundError, match="is missing" if index else "has 2 of 3 shards"):
        open_checkpoint(tmp_path)


def test_variants(tmp_path: Path, sd15: Parts) -> None:
    making.folder(tmp_path, sd15)
    half = {key: value.half() for key, value in sd15["unet"].items()}
    save_file(half, tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    plain = open_checkpoint(tmp_path)
    assert plain.notes == ("unet: took the plain files, not fp16",)
    assert plain.read("unet.conv_in").dtype == torch.float32
    (tmp_path / "text_encoder" / "model.safetensors").rename(tmp_path / "text_encoder" / "model.fp16.safetensors")
    chosen = open_checkpoint(tmp_path, variant="fp16")
    assert chosen.read("unet.conv_in").dtype == torch.float16
    assert open_checkpoint(tmp_path).notes == plain.notes
    with pytest.raises(NotFoundError, match="no variant 'bf16': it has the plain files, fp16"):
        open_checkpoint(tmp_path, variant="bf16")


def test_refusals_are_one_line(tmp_path: Path, sd15: Parts) -> None:
    def refused(kind: type[LorahubError], words: str, path: Path) -> None:
        with pytest.raises(kind, match=words) as caught:
            open_checkpoint(path)
        assert "\n" not in str(caught.value)

    def file(name: str, tensors: Mapping[str, Tensor]) -> Path:
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, tmp_path / name)
        return tmp_path / name

    weight = torch.zeros(4, 4)
    refused(NotFoundError, "no such file", tmp_path / "none")
    refused(NotFoundError, "no diffusers folder", tmp_path)
    (tmp_path / "old.ckpt").write_bytes(b"\x80")
    refused(FileFormatError, "Python pickle", tmp_path / "old.ckpt")
    cut = file("cut.safetensors", sd15["unet"])
    cut.write_bytes(cut.read_bytes()[:-100])
    refused(FileFormatError, "truncated", cut)
    refused(FileFormatError, "is an adapter", file("lora.safetensors", {"lora_unet_a_to_q.lora_down.weight": weight}))
    refused(FileFormatError, "no layers", file("empty.safetensors", {"betas": torch.zeros(3)}))
    scaled = {"double_blocks.0.img_attn.qkv.weight": weight, "double_blocks.0.img_attn.qkv.scale_weight": weight}
    refused(FileFormatError, "scaled weights", file("scaled.safetensors", scaled))
    refused(FileFormatError, "quantised", file("int8.safetensors", {"a.to_q.weight": weight.to(torch.int8)}))
    clip = {f"text_model.encoder.layers.0.self_attn.{x}_proj.weight": torch.zeros(768, 768) for x in "qkv"}
    refused(BaseMismatchError, "fits several bases", file("clip.safetensors", clip))
    twice = {"unet.a.weight": weight, "base_model.model.unet.a.weight": weight}
    refused(FileFormatError, "twice", file("twice.safetensors", twice))
    (tmp_path / "unet").mkdir()
    refused(NotFoundError, "holds no diffusion_pytorch_model.safetensors", tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80")
    refused(FileFormatError, "Python pickle", tmp_path)
    save_file({"a.weight": weight}, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": 1}))
    refused(FileFormatError, "weight_map", tmp_path)


def test_a_file_that_shrinks_is_noticed(tmp_path: Path, sd15: Parts) -> None:
    path = making.folder(tmp_path, sd15) / "unet" / "diffusion_pytorch_model.safetensors"
    checkpoint = open_checkpoint(tmp_path)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(FileFormatError, match="ends within"):
        checkpoint.read("unet.up_blocks.3.resnets.2.conv2")
    with pytest.raises(NotFoundError, match=r"no layer 'unet\.nothing'"):
        checkpoint.read("unet.nothing")
