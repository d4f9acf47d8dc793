"""From named tensors to an adapter: placing layers, what is refused and why, bases that are not listed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lorahub import bases
from lorahub.errors import (
    BaseMismatchError,
    FileFormatError,
    NotAdditiveError,
    NotFoundError,
    UsageError,
    VerificationError,
)
from lorahub.files.building import AmbiguousBaseError, from_state_dict
from lorahub.files.loading import load_path
from lorahub.files.saving import save

from . import making

ATTN = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"
KOHYA_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def tensors(*names: str, base: str = "sd15", seed: int = 1) -> dict[str, Tensor]:
    """kohya keys for these canonical layers."""
    return making.kohya(making.trained(bases.get(base), names, seed=seed))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# layers that come twice


def fused_and_split(changed: float) -> dict[str, Tensor]:
    """A Flux file that holds qkv, and q once more with its ΔW multiplied by `changed`."""
    fused = "lora_unet_double_blocks_0_img_attn_qkv"
    again = "transformer.transformer_blocks.0.attn.to_q"
    down, up = random(4, 3072), random(9216, 4, seed=1)
    return {
        f"{fused}.lora_down.weight": down,
        f"{fused}.lora_up.weight": up,
        f"{again}.lora_A.weight": down,
        f"{again}.lora_B.weight": up[:3072] * changed,
    }


def test_a_layer_given_twice_alike_is_taken_once() -> None:
    adapter = from_state_dict(fused_and_split(1.0))
    assert [name.rpartition(".")[2] for name in adapter.layers] == ["to_q", "to_k", "to_v"]
    expected = random(9216, 4, seed=1)[:3072] @ random(4, 3072)
    torch.testing.assert_close(next(iter(adapter.layers.values())).dense(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("changed", [1.01, -1.0, 0.0])
def test_a_layer_given_twice_differently_is_refused(changed: float) -> None:
    with pytest.raises(FileFormatError, match=r"transformer_blocks\.0\.attn\.to_q is given twice, and differently"):
        from_state_dict(fused_and_split(changed))


def test_an_offset_given_twice_differently_is_refused() -> None:
    given = tensors(f"{ATTN}.to_q") | {"lora_unet_conv_in.diff_b": torch.ones(320)}
    alike = from_state_dict(given | {"unet.conv_in.diff_b": torch.ones(320)}, base="sd15")
    assert alike.offsets.keys() == {"unet.conv_in.bias"}
    with pytest.raises(FileFormatError, match=r"unet\.conv_in\.bias is given twice, and differently"):
        from_state_dict(given | {"unet.conv_in.diff_b": torch.zeros(320)}, base="sd15")


# layers that do not fit


def test_rows_that_the_base_does_not_have_are_never_cut_off() -> None:
    given = {f"{KOHYA_Q}.lora_down.weight": random(2, 320), f"{KOHYA_Q}.lora_up.weight": random(640, 2)}
    with pytest.raises(BaseMismatchError, match="attn1_to_q has 320 rows in sd15, the file's has 640"):
        from_state_dict(given, base="sd15")
    short = given | {f"{KOHYA_Q}.lora_up.weight": random(300, 2)}
    with pytest.raises(BaseMismatchError, match="has 320 rows in sd15, the file's has 300"):
        from_state_dict(short, base="sd15")
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    fused = {f"{stem}.lora_down.weight": random(2, 3072), f"{stem}.lora_up.weight": random(3072, 2)}
    with pytest.raises(BaseMismatchError, match="has 9216 rows in flux1, the file's has 3072"):
        from_state_dict(fused, base="flux1")


def test_columns_that_the_base_does_not_have_are_refused() -> None:
    given = {f"{KOHYA_Q}.lora_down.weight": random(2, 640), f"{KOHYA_Q}.lora_up.weight": random(320, 2)}
    with pytest.raises(BaseMismatchError, match=r"is \[320, 320\] in sd15, the file's is \[320, 640\]"):
        from_state_dict(given, base="sd15")


def test_layers_of_another_base_are_refused_by_name() -> None:
    given = tensors("transformer.transformer_blocks.0.attn.to_out.0", base="flux1")
    with pytest.raises(BaseMismatchError, match="sd15 has no layer 'lora_unet_transformer_blocks_0_attn_to_out_0'"):
        from_state_dict(given, base="sd15")


def test_a_1x1_kernel_may_be_missing_or_be_there_without_need() -> None:
    """SD1 projects by 1x1 convolutions, SD2 by matrices; trainers have mixed them up."""
    for base, shape in (("sd15", (320, 320, 1, 1)), ("sd2", (320, 320))):
        for kernel in ((), (1, 1)):
            stem = "lora_unet_down_blocks_0_attentions_0_proj_in"
            given = {
                f"{stem}.lora_down.weight": random(2, 320, *kernel),
                f"{stem}.lora_up.weight": random(320, 2, *kernel, seed=1),
            }
            (layer,) = from_state_dict(given, base=base).layers.values()
            assert layer.shape == shape
            expected = random(320, 2, seed=1) @ random(2, 320)
            torch.testing.assert_close(layer.dense().reshape(320, 320), expected, rtol=1e-5, atol=1e-5)


# what is no vector, and what nobody understands


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({f"{KOHYA_Q}.dora_scale": torch.ones(320, 1)}, "DoRA rescales"),
        ({f"{KOHYA_Q.replace('to_q', 'to_k')}.oft_blocks": torch.ones(4, 80, 80)}, "OFT multiplies W by a rotation"),
        ({f"{KOHYA_Q.replace('to_q', 'to_k')}.a1.weight": torch.ones(1, 320)}, r"GLoRA adds W·A \+ B"),
    ],
)
def test_what_is_no_vector_is_refused_with_the_reason(extra: dict[str, Tensor], reason: str, tmp_path: Path) -> None:
    path = making.written(tensors(f"{ATTN}.to_q") | extra, tmp_path / "a.safetensors")
    with pytest.raises(NotAdditiveError, match=reason):
        load_path(path)


def test_keys_that_nobody_understands_are_an_error() -> None:
    with pytest.raises(FileFormatError, match="1 keys are not understood, such as 'mystery'"):
        from_state_dict(tensors(f"{ATTN}.to_q") | {"mystery": torch.ones(3)})


def test_a_file_without_layers_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="a holds no adapter layers"):
        load_path(making.written({}, tmp_path / "a.safetensors"))


def test_nan_in_an_offset_or_an_embedding_is_an_error() -> None:
    for key in ("lora_unet_conv_in.diff_b", "bundle_emb.dot.string_to_param.*"):
        with pytest.raises(VerificationError, match="holds NaN or Inf"):
            from_state_dict(tensors(f"{ATTN}.to_q") | {key: torch.full((320,), float("nan"))}, base="sd15")


# scales


@pytest.mark.parametrize("alpha", [0.0, 2.0, None])
def test_the_scale_is_resolved_once(alpha: float | None) -> None:
    """alpha / rank; none means 1, and a stored 0 means off."""
    given = {f"{KOHYA_Q}.lora_down.weight": random(4, 320), f"{KOHYA_Q}.lora_up.weight": random(320, 4, seed=1)}
    if alpha is not None:
        given[f"{KOHYA_Q}.alpha"] = torch.tensor(alpha)
    (layer,) = from_state_dict(given, base="sd15").layers.values()
    expected = {0.0: 0.0, 2.0: 0.5, None: 1.0}[alpha] * (random(320, 4, seed=1) @ random(4, 320))
    torch.testing.assert_close(layer.dense(), expected, rtol=1e-5, atol=1e-5)


# bases


def test_an_ambiguous_base_names_the_candidates() -> None:
    """The encoder of SD 1.5 is also the first one of SDXL, SD3 and Flux."""
    given = tensors("text_encoder.text_model.encoder.layers.0.mlp.fc1")
    with pytest.raises(
        AmbiguousBaseError, match=r"fits several bases \(.*sd15.*sdxl.*\): say which with --base"
    ) as caught:
        from_state_dict(given)
    assert {"sd15", "sdxl", "flux1"} <= set(caught.value.candidates)
    assert caught.value.exit_code == 1
    assert from_state_dict(given, base="flux1").base == "flux1"


UNLISTED = {
    "kohya": {f"lora_unet_strange_{n}_to_q": (6, 8) for n in range(2)},
    "dotted": {f"transformer.strange.{n}.to_q": (6, 8) for n in range(2)},
    "bare": {f"strange.{n}.to_q": (6, 8) for n in range(2)},
    "comfy": {f"diffusion_model.strange.{n}.to_q": (6, 8) for n in range(2)},
    "peft": {f"base_model.model.layers.{n}.q_proj": (6, 8) for n in range(2)},
}


def unlisted(kind: str, *, seed: int = 0, alpha: float = 6.0) -> dict[str, Tensor]:
    down, up = ("lora_down", "lora_up") if kind == "kohya" else ("lora_A", "lora_B")
    given: dict[str, Tensor] = {}
    for number, (name, (out, inn)) in enumerate(UNLISTED[kind].items(), seed):
        given[f"{name}.{down}.weight"] = random(3, inn, seed=number)
        given[f"{name}.{up}.weight"] = random(out, 3, seed=number + 10)
        if kind == "kohya":
            given[f"{name}.alpha"] = torch.tensor(alpha)
    return given


@pytest.mark.parametrize("kind", UNLISTED)
def test_a_base_that_is_not_listed_has_arithmetic_and_its_own_spelling(kind: str, tmp_path: Path) -> None:
    one = load_path(making.written(unlisted(kind), tmp_path / "one.safetensors"))
    two = load_path(making.written(unlisted(kind, seed=5), tmp_path / "two.safetensors"))
    assert one.base == ("unlisted:kohya" if kind == "kohya" else "unlisted:dotted")
    assert list(one.layers) == list(UNLISTED[kind])
    total = 0.5 * one - two
    expected = making.mixture((0.5, making.dense(one)), (-1.0, making.dense(two)))
    forms = ("kohya",) if kind == "kohya" else ("diffusers", "peft")
    for form in forms:
        path = tmp_path / (form if form == "peft" else f"{form}.safetensors")
        saved = save(total, path, format=form, dtype="fp32")
        found = load_path(saved.path)
        assert found.base == one.base
        assert making.apart(expected, making.dense(found)) < 1e-6
        again = save(found, tmp_path / f"again-{form}", format=form)
        assert making.apart(expected, making.dense(load_path(again.path))) < 1e-3
    default = save(total, tmp_path / "default.safetensors", dtype="fp32")
    assert default.format == forms[0]


def test_a_dotted_spelling_keeps_its_names_in_the_file(tmp_path: Path) -> None:
    for kind, names in UNLISTED.items():
        if kind != "kohya":
            saved = save(from_state_dict(unlisted(kind)), tmp_path / f"{kind}.safetensors")
            keys = {key for key in making.header(saved.path) if key != "__metadata__"}
            assert keys == {f"{name}.lora_{half}.weight" for name in names for half in "AB"}


def test_a_base_that_is_not_listed_cannot_be_respelled(tmp_path: Path) -> None:
    for kind, form in (("kohya", "diffusers"), ("kohya", "peft"), ("dotted", "kohya")):
        with pytest.raises(BaseMismatchError, match=rf"cannot be respelled as {form}: save it as .*listed are sd15"):
            save(from_state_dict(unlisted(kind)), tmp_path / "a.safetensors", format=form)
    with pytest.raises(BaseMismatchError, match="live in different spaces"):
        from_state_dict(unlisted("kohya")) + from_state_dict(unlisted("dotted"))
    with pytest.raises(BaseMismatchError, match="mixes kohya and dotted names, and its base is not listed"):
        from_state_dict(unlisted("kohya") | unlisted("dotted"))


def test_offsets_of_a_base_that_is_not_listed_stay_in_kohya_files(tmp_path: Path) -> None:
    given = unlisted("kohya") | {"lora_unet_strange_0_to_q.diff_b": random(6)}
    found = load_path(save(from_state_dict(given), tmp_path / "a.safetensors", dtype="fp32").path)
    assert torch.equal(found.offsets["lora_unet_strange_0_to_q.bias"], random(6))
    dotted = unlisted("dotted") | {"transformer.strange.0.to_q.diff_b": random(6)}
    with pytest.raises(UsageError, match="diffusers files cannot hold the offsets of state dict: drop them"):
        save(from_state_dict(dotted), tmp_path / "b.safetensors")


# PEFT folders, names


def peft_folder(folder: Path, raw: making.Trained, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    bare = {name.partition(".")[2]: layer for name, layer in raw.items()}
    save_file(making.peft_keys(bare, "base_model.model."), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 2, **config}))
    return folder


def test_components_of_a_folder_settle_each_others_base(tmp_path: Path) -> None:
    """The encoder alone could be of several bases; beside the UNet of SDXL it is not."""
    base = bases.get("sdxl")
    unet = making.trained(
        base, [f"unet.mid_block.attentions.0.transformer_blocks.{n}.attn2.to_k" for n in range(10)], seed=1
    )
    unet = {name: making.Raw(raw.shape, random(1280, 4), random(4, 2048), 2.0) for name, raw in unet.items()}
    encoder = making.trained(
        base, ["text_encoder.text_model.encoder.layers.0.mlp.fc1"], seed=2, ranks=(4,), alphas=(2.0,)
    )
    peft_folder(tmp_path / "style" / "unet", unet, {})
    peft_folder(tmp_path / "style" / "encoder", encoder, {})
    with pytest.raises(AmbiguousBaseError):
        load_path(tmp_path / "style" / "encoder")
    found = load_path(tmp_path / "style")
    assert found.base == "sdxl"
    assert making.apart(making.probed({**unet, **encoder}), making.probed(found)) < 1e-6


def test_two_components_that_hold_the_same_layers_are_refused(tmp_path: Path) -> None:
    raw = making.trained(bases.get("sd15"), [f"{ATTN}.to_q"], seed=1, ranks=(4,))
    for part in ("one", "two"):
        peft_folder(tmp_path / "style" / part, raw, {})
    with pytest.raises(FileFormatError, match="two of its component folders hold the same layers"):
        load_path(tmp_path / "style", base="sd15")


def test_the_name_is_that_of_the_file_or_of_its_folder(tmp_path: Path) -> None:
    path = making.written(tensors(f"{ATTN}.to_q"), tmp_path / "my style.safetensors")
    assert load_path(path, base="sd15").name == "my style"
    raw = making.trained(bases.get("sd15"), [f"{ATTN}.to_q"], seed=1, ranks=(4,))
    assert load_path(peft_folder(tmp_path / "papercut", raw, {}), base="sd15").name == "papercut"


def test_an_unknown_base_is_told_with_those_that_are_known() -> None:
    with pytest.raises(NotFoundError, match=re.compile("no base model is called 'sd16'.*sdxl")):
        from_state_dict(tensors(f"{ATTN}.to_q"), base="sd16")
