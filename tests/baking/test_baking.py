"""Linear adapters baked into folders and single files: against float64, and against diffusers' own fuse_lora."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lorahub as lh
from lorahub.bases.model import Base
from lorahub.checkpoints import open_checkpoint
from lorahub.extracting import extract
from lorahub.files.inspecting import PROVENANCE_KEY
from tests.baking import making
from tests.checkpoints.making import LDM, ldm, open_clip
from tests.files import tiny


@pytest.fixture(scope="module")
def sd15() -> Base:
    return making.base("sd15")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a tiny SD 1.5 in fp16, its UNet in three shards."""
    return making.folder(tmp_path_factory.mktemp("models") / "tiny", making.parts("sd15"), "sd15")


def test_a_sharded_folder(sd15: Base, model: Path, tmp_path: Path) -> None:
    style, lcm = making.adapter(sd15, seed=1), making.adapter(sd15, seed=2, rank=3, offsets=False)
    making.saved(style, tmp_path / "style.safetensors", sd15)
    making.saved(lcm, tmp_path / "lcm.safetensors", sd15, format="diffusers")
    done = lh.bake(
        f"0.8*{tmp_path}/style.safetensors - 0.5*{tmp_path}/lcm.safetensors", model, tmp_path / "out", base=sd15
    )
    wanted = making.added(making.read(model, sd15), (0.8, style), (-0.5, lcm))
    making.assert_rounded(making.read(tmp_path / "out", sd15), wanted)
    assert (done.layers, done.vectors, done.files, done.dtypes) == (len(style.layers), 2, 4, ("F16",))
    assert done.expression == "0.8*style - 0.5*lcm"
    assert 0 < done.rounding < 0.01
    for file in model.rglob("*"):  # configurations, the index and the VAE are the same bytes
        copy = tmp_path / "out" / file.relative_to(model)
        if file.is_file() and (file.suffix == ".json" or "vae" in file.parts):
            assert copy.read_bytes() == file.read_bytes()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_an_adapter_does_not_touch_keeps_its_bytes(sd15: Base, model: Path, tmp_path: Path) -> None:
    value = making.adapter(sd15, components=("unet",), offsets=False)
    one = lh.Adapter(sd15.name, {name: value.layers[name] for name in list(value.layers)[3:5]})
    lh.bake(one, model, tmp_path / "out", base=sd15)
    before, after = making.tensors_of(model), making.tensors_of(tmp_path / "out")
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert len(changed) == 2
    layers = {f"unet.{key.partition(':')[2].removesuffix('.weight')}" for key in changed}
    assert layers == set(one.layers)


def test_the_metadata_says_what_was_baked_into_what(sd15: Base, tmp_path: Path) -> None:
    unet = making.parts("sd15")["unet"]
    metadata = {"format": "pt", "modelspec.title": "Base", "sshs_model_hash": "0" * 64, "modelspec.hash_sha256": "0x1"}
    save_file(ldm(unet, sd15), tmp_path / "base.safetensors", metadata)
    making.saved(making.adapter(sd15, components=("unet",)), tmp_path / "style.safetensors", sd15)
    for source, out in (("base", "one"), ("one", "two")):
        lh.bake(
            f"{tmp_path}/style.safetensors",
            tmp_path / f"{source}.safetensors",
            tmp_path / f"{out}.safetensors",
            base=sd15,
        )
    with safe_open(tmp_path / "two.safetensors", "pt") as file:
        found = file.metadata()
    assert found.keys() == {"format", "modelspec.title", PROVENANCE_KEY}
    facts = json.loads(found[PROVENANCE_KEY])
    assert facts["method"] == "bake"
    assert facts["into"]["data_sha256"] == open_checkpoint(tmp_path / "one.safetensors", base=sd15).data_sha256
    inner = facts["into"]["provenance"]["into"]
    assert inner["data_sha256"] == open_checkpoint(tmp_path / "base.safetensors", base=sd15).data_sha256
    assert [parent["name"] for parent in facts["parents"]] == ["style"]
    assert facts["parents"][0]["data_sha256"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_single_file_in_each_dtype(sd15: Base, tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = ldm(making.parts("sd15", dtype)["unet"], sd15)
    others = {
        "first_stage_model.conv.weight": torch.randn(3, 3),
        "model_ema.decay": torch.tensor(7),
        "logit_scale": torch.tensor(1.0),
    }
    save_file({**tensors, **others}, tmp_path / "base.safetensors")
    value = making.adapter(sd15, components=("unet",))
    lh.bake(value, tmp_path / "base.safetensors", tmp_path / "out.safetensors", base=sd15)
    wanted = making.added(making.read(tmp_path / "base.safetensors", sd15), (1.0, value))
    slack = 1e-12 if dtype == torch.float64 else 1e-5
    making.assert_rounded(making.read(tmp_path / "out.safetensors", sd15), wanted, slack=slack)
    after = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(after[key], tensor) for key, tensor in others.items())


def test_fused_and_transposed_weights_of_open_clip(tmp_path: Path) -> None:
    sdxl, parts = making.base("sdxl"), making.parts("sdxl", torch.float32)
    tensors = {
        **ldm(parts["unet"], sdxl),
        **{f"conditioner.embedders.0.transformer.{key}": value for key, value in parts["text_encoder"].items()},
        **open_clip(parts["text_encoder_2"], "conditioner.embedders.1.model."),
    }
    save_file(tensors, tmp_path / "base.safetensors")
    value = making.adapter(sdxl, offsets=False)
    assert "text_encoder_2.text_projection" in value.layers
    some = lh.Adapter(sdxl.name, {name: layer for name, layer in value.layers.items() if "v_proj" not in name})
    lh.bake(some, tmp_path / "base.safetensors", tmp_path / "out.safetensors", base=sdxl)
    wanted = making.added(making.read(tmp_path / "base.safetensors", sdxl), (1.0, some))
    making.assert_rounded(making.read(tmp_path / "out.safetensors", sdxl), wanted)
    fused = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"
    after = load_file(tmp_path / "out.safetensors")[fused]
    assert torch.equal(after[2 * tiny.WIDTH :], tensors[fused][2 * tiny.WIDTH :]), "v is not touched"
    assert not torch.equal(after[: 2 * tiny.WIDTH], tensors[fused][: 2 * tiny.WIDTH])


def test_a_linear_projection_stored_as_a_convolution(sd15: Base, tmp_path: Path) -> None:
    tensors = ldm(making.parts("sd15")["unet"], sd15)
    key = f"{LDM}input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    tensors[key] = tensors[key][:, :, None, None]
    save_file(tensors, tmp_path / "base.safetensors")
    value = making.adapter(sd15, components=("unet",), offsets=False)
    lh.bake(value, tmp_path / "base.safetensors", tmp_path / "out.safetensors", base=sd15)
    making.assert_rounded(
        making.read(tmp_path / "out.safetensors", sd15),
        making.added(making.read(tmp_path / "base.safetensors", sd15), (1.0, value)),
    )
    assert load_file(tmp_path / "out.safetensors")[key].shape == tensors[key].shape


def test_as_diffusers_fuses_it(sd15: Base, model: Path, tmp_path: Path) -> None:
    path = making.saved(
        making.adapter(sd15, components=("unet",), offsets=False), tmp_path / "a.safetensors", sd15, format="diffusers"
    )
    lh.bake(str(path), model, tmp_path / "out", base=sd15)
    unet = tiny.sd15().unet
    unet.load_state_dict({key: value.float() for key, value in making.parts("sd15")["unet"].items()})
    unet.load_lora_adapter(load_file(path), prefix="unet")
    unet.fuse_lora()
    unet.unload_lora()
    theirs = {f"unet.{key}": value.double() for key, value in unet.state_dict().items()}
    mine = making.tensors_of(tmp_path / "out" / "unet")
    making.assert_rounded({f"unet.{key.partition(':')[2]}": value for key, value in mine.items()}, theirs)


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
def test_fp8_is_rounded_once_and_said(sd15: Base, tmp_path: Path, kind: str) -> None:
    dtype = getattr(torch, kind)
    unet = {key: value.to(dtype) for key, value in making.parts("sd15", torch.float32)["unet"].items()}
    save_file(ldm(unet, sd15), tmp_path / "base.safetensors")
    value = making.adapter(sd15, components=("unet",), size=0.005)
    done = lh.bake(value, tmp_path / "base.safetensors", tmp_path / "out.safetensors", base=sd15)
    before = {name: tensor.float() for name, tensor in making.read(tmp_path / "base.safetensors", sd15).items()}
    after = making.read(tmp_path / "out.safetensors", sd15)
    wanted = making.added(before, (1.0, value))
    same = [torch.equal(after[name].float(), wanted[name].float().to(dtype).float()) for name in after]
    assert sum(same) > 0.9 * len(same), "all but ties are the wanted numbers rounded"
    assert done.rounding > 0.1
    assert any("rounding to F8" in note for note in done.notes)


def test_copies_that_would_be_loaded_unbaked_are_left_out(sd15: Base, model: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(model, source)
    unet = making.parts("sd15")["unet"]
    save_file(unet, source / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    (source / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    (source / "v1-5-pruned.ckpt").write_bytes(b"x")
    (source / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    (source / ".cache").mkdir()
    value = making.adapter(sd15, components=("unet",))
    done = lh.bake(value, source, tmp_path / "plain", base=sd15)
    gone = ("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors", "v1-5-pruned.ckpt")
    assert done.left_out == gone
    assert not any((tmp_path / "plain" / name).exists() for name in (*gone, ".cache"))
    assert (tmp_path / "plain" / "vae" / "diffusion_pytorch_model.bin").exists()
    done = lh.bake(value, source, tmp_path / "half", base=sd15, variant=None)
    assert any("took the plain files" in note for note in done.notes)


def test_a_folder_of_one_component_is_a_folder_of_one_component(sd15: Base, model: Path, tmp_path: Path) -> None:
    value = making.adapter(sd15, components=("unet",))
    lh.bake(value, model / "unet", tmp_path / "styled", base=sd15, check=True)
    wanted = making.added(making.read(model / "unet", sd15), (1.0, value))
    making.assert_rounded(making.read(tmp_path / "styled", sd15), wanted)


def test_the_negative_takes_it_out_again(sd15: Base, tmp_path: Path) -> None:
    save_file(ldm(making.parts("sd15", torch.float64)["unet"], sd15), tmp_path / "base.safetensors")
    value = making.adapter(sd15, components=("unet",))
    lh.bake(value, tmp_path / "base.safetensors", tmp_path / "with.safetensors", base=sd15)
    lh.bake(-value, tmp_path / "with.safetensors", tmp_path / "without.safetensors", base=sd15)
    before, after = (making.read(tmp_path / f"{name}.safetensors", sd15) for name in ("base", "without"))
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-12, atol=1e-12)


def test_what_was_baked_is_extracted_again(sd15: Base, tmp_path: Path) -> None:
    save_file(ldm(making.parts("sd15", torch.float32)["unet"], sd15), tmp_path / "base.safetensors")
    value = making.adapter(sd15, components=("unet",), offsets=False)
    lh.bake(value, tmp_path / "base.safetensors", tmp_path / "out.safetensors", base=sd15)
    pair = [open_checkpoint(tmp_path / f"{name}.safetensors", base=sd15) for name in ("base", "out")]
    found = extract(*pair, lh.fixed(2))
    assert found.layers.keys() == value.layers.keys()
    assert lh.norm(found - value) < 1e-5 * lh.norm(value)
