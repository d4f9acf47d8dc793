"""Saving: what a file says and holds, numbers that are hard on half precision, and sizes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import lorahub as lh
from lorahub import bases
from lorahub.algebra.recipe import Source
from lorahub.errors import LorahubError, UsageError, VerificationError
from lorahub.files import saving
from lorahub.files.building import from_state_dict
from lorahub.files.loading import load_path
from lorahub.files.saving import file_budget, save

from . import making
from .styles import listing, metadata, multiplied, style

# what a file holds


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-6), ("fp16", 1e-3), ("bf16", 1e-2)])
def test_a_file_holds_the_vector_in_its_dtype(dtype: str, tolerance: float, tmp_path: Path) -> None:
    asked = 0.7 * style()
    saved = save(asked, tmp_path / "a.safetensors", dtype=dtype)
    assert making.apart(making.dense(asked), making.dense(load_path(saved.path))) == pytest.approx(saved.error, rel=1)
    assert saved.error < tolerance
    with safe_open(saved.path, "pt") as file:
        kinds = {key: file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118
    wide = saving.DTYPES[dtype]
    assert all(kind == (torch.float32 if key.endswith(".alpha") else wide) for key, kind in kinds.items())
    assert (saved.size, saved.layers, saved.dtype, saved.format) == (saved.path.stat().st_size, 5, dtype, "kohya")


def test_tensors_are_aligned_and_the_hash_is_that_of_the_data(tmp_path: Path) -> None:
    asked = style(ranks=(1, 3), metadata={"ss_note": "0" * 64, "modelspec.title": '"sshs_model_hash":"' + "0" * 64})
    saved = save(asked, tmp_path / "a.safetensors")
    raw = saved.path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    assert start % 8 == 0
    widths = {"F32": 4, "F16": 2}
    for key, entry in making.header(saved.path).items():
        if key != "__metadata__":
            assert isinstance(entry, dict)
            assert entry["data_offsets"][0] % widths[entry["dtype"]] == 0
    found = metadata(saved.path)
    assert found["sshs_model_hash"] == saved.data_sha256 == hashlib.sha256(raw[start:]).hexdigest()
    assert found["ss_note"] == "0" * 64
    assert lh.inspect(saved.path, hashes=True)[0].hashes["verdict"] == "agrees"


def test_the_same_adapter_makes_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        save(0.5 * style() + style("sharp", seed=2), tmp_path / folder / "a.safetensors")
    first, second = ((tmp_path / folder / "a.safetensors").read_bytes() for folder in ("one", "two"))
    assert first == second


def test_provenance_tells_expression_weights_settings_and_parents(tmp_path: Path) -> None:
    parents = style(metadata={"ss_tag_frequency": '{"a": 1}'}), style("my sharp", seed=2)
    made = lh.truncate(0.8 * parents[0] - 1.5 * parents[1], lh.fixed(2))
    saved = save(made, tmp_path / "a.safetensors")
    told = json.loads(metadata(saved.path)["lorahub.provenance"])
    assert told["expression"] == 'truncate(0.8*style - 1.5*"my sharp", rule=fixed(2))'
    assert told["weights"] == [0.8, -1.5]
    assert told["settings"] == {"truncate": {"rule": "fixed(2)"}}
    assert [parent["name"] for parent in told["parents"]] == ["style", "my sharp"]
    assert [parent["data_sha256"] for parent in told["parents"]] == [
        hashlib.sha256(name).hexdigest() for name in (b"style", b"my sharp")
    ]
    assert told["parents"][0]["metadata"] == {"ss_tag_frequency": '{"a": 1}'}
    assert told["tool"].startswith("lorahub ")
    again = save(load_path(saved.path), tmp_path / "b.safetensors")
    nested = json.loads(metadata(again.path)["lorahub.provenance"])["parents"][0]
    assert nested["provenance"] == told
    assert nested["data_sha256"] == saved.data_sha256


def test_metadata_that_the_parents_share_is_kept_and_none_is_lost(tmp_path: Path) -> None:
    common = {"ss_base_model_version": "sd_v1", "modelspec.architecture": "stable-diffusion-v1/lora"}
    one = style(metadata={**common, "ss_epoch": "3", "ss_network_dim": "128", "modelspec.title": "One", "other": "x"})
    two = style("two", seed=2, metadata={**common, "ss_epoch": "4", "modelspec.hash_sha256": "0xff"})
    found = metadata(save(one + two, tmp_path / "a.safetensors").path)
    assert found.items() >= common.items()
    assert "ss_epoch" not in found  # they disagree
    assert "modelspec.hash_sha256" not in found  # of the parent's bytes
    assert "other" not in found
    assert found["modelspec.title"] == "One"
    assert found["modelspec.merged_from"] == "One, two"
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("Dynamic", "8")
    told = json.loads(found["lorahub.provenance"])["parents"]
    assert [parent["metadata"]["ss_epoch"] for parent in told] == ["3", "4"]
    assert told[0]["metadata"]["ss_network_dim"] == "128"
    assert found["lorahub.base"] == "sd15"


def test_a_peft_folder_of_one_component_is_flat_and_of_several_is_not(tmp_path: Path) -> None:
    both = save(style(), tmp_path / "both")
    assert listing(both.path) == [
        "text_encoder",
        "text_encoder/adapter_config.json",
        "text_encoder/adapter_model.safetensors",
        "unet",
        "unet/adapter_config.json",
        "unet/adapter_model.safetensors",
    ]
    assert both.size == sum(path.stat().st_size for path in both.path.rglob("*.*"))
    one = save(lh.weighted(style(), {"^text_encoder": 0}), tmp_path / "one")
    assert listing(one.path) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((one.path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert config["peft_type"] == "LORA"
    assert making.apart(making.dense(style()), making.dense(load_path(both.path))) < 1e-3


def test_a_peft_folder_keeps_the_metadata_its_components_share(tmp_path: Path) -> None:
    saved = save(style(metadata={"ss_epoch": "3"}), tmp_path / "a")
    source = load_path(saved.path).recipe
    assert isinstance(source, Source)
    assert source.metadata["ss_epoch"] == "3"
    assert "lorahub.component" not in source.metadata
    assert source.data_sha256 == saved.data_sha256
    assert source.name == "a"


# numbers that are hard on half precision


def test_factors_far_apart_are_balanced_so_that_half_precision_holds_them(tmp_path: Path) -> None:
    """1e-7 is less than half of what fp16 can tell from zero, and 1e7 more than it can hold; their product is neither."""
    plain = style()
    for up, down in ((1e-7, 1e7), (1e7, 1e-7), (1e-9, 1e9)):
        skewed = multiplied(plain, up, down)
        for form in ("kohya", "diffusers"):
            saved = save(skewed, tmp_path / f"{form}.safetensors", format=form, dtype="fp16", force=True)
            assert saved.error < 1e-3
            assert making.apart(making.dense(plain), making.dense(load_path(saved.path))) < 1e-3


def test_a_small_and_a_large_factor_of_the_published_kind_survive(tmp_path: Path) -> None:
    saved = save(multiplied(style(), 1e-7, 1e3), tmp_path / "a.safetensors", dtype="fp16")
    assert saved.error < 1e-3


def test_overflow_of_half_precision_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"does not fit float16"):
        save(multiplied(style(), 1e6, 1e6), tmp_path / "a.safetensors", dtype="fp16")
    assert listing(tmp_path) == []
    assert save(multiplied(style(), 1e6, 1e6), tmp_path / "a.safetensors", dtype="bf16").error < 1e-2


def test_underflow_of_half_precision_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="read back in float16, ΔW differs by 1 of its norm"):
        save(multiplied(style(), 1e-9, 1e-9), tmp_path / "a.safetensors", dtype="fp16")
    assert listing(tmp_path) == []
    assert save(multiplied(style(), 1e-9, 1e-9), tmp_path / "a.safetensors", dtype="bf16").error < 1e-2


def test_what_a_half_precision_file_stores_already_is_copied_bit_by_bit(tmp_path: Path) -> None:
    first = save(style(ranks=(4,)), tmp_path / "a.safetensors", dtype="fp16")
    again = save(load_path(first.path), tmp_path / "b.safetensors", dtype="fp16")
    assert again.data_sha256 == first.data_sha256
    assert again.error == 0


def test_nan_in_the_weights_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    sick = multiplied(style(), float("nan"), 1)
    for form in ("kohya", "diffusers", "peft"):
        with pytest.raises(VerificationError):
            save(sick, tmp_path / "a", format=form, dtype="fp32")
    assert listing(tmp_path) == []


# parts that only kohya files hold


def with_extras() -> lh.Adapter:
    plain = style()
    offsets = {"unet.conv_in.bias": torch.randn(320), "unet.conv_norm_out.weight": torch.randn(320)}
    return lh.Adapter("sd15", plain.layers, offsets, {"<dot>": torch.randn(2, 768)}, plain.recipe)


def test_offsets_and_embeddings_are_kept_by_kohya_files(tmp_path: Path) -> None:
    asked = with_extras()
    saved = save(0.5 * asked, tmp_path / "a.safetensors", dtype="fp32")
    keys = making.header(saved.path).keys()
    assert {"lora_unet_conv_in.diff_b", "lora_unet_conv_norm_out.diff", "bundle_emb.<dot>.string_to_param.*"} <= keys
    found = load_path(saved.path)
    assert found.offsets.keys() == asked.offsets.keys()
    assert all(torch.equal(found.offsets[name], 0.5 * offset) for name, offset in asked.offsets.items())
    assert torch.equal(found.embeddings["<dot>"], asked.embeddings["<dot>"])


@pytest.mark.parametrize("form", ["diffusers", "peft"])
def test_offsets_and_embeddings_are_refused_elsewhere_unless_dropped(form: str, tmp_path: Path) -> None:
    asked, path = with_extras(), tmp_path / "a"
    with pytest.raises(
        UsageError, match="cannot hold the offsets and embeddings of style: save as kohya, or drop them"
    ):
        save(asked, path, format=form)
    with pytest.raises(UsageError, match="cannot hold the embeddings of style"):
        save(asked, path, format=form, drop=["offsets"])
    save(asked, path, format=form, drop=["offsets", "embeddings"])
    assert making.apart(making.dense(asked), making.dense(load_path(path))) < 1e-3


def test_an_adapter_of_offsets_alone_or_of_embeddings_alone_can_be_saved(tmp_path: Path) -> None:
    asked = with_extras()
    only = save(lh.Adapter("sd15", {}, asked.offsets), tmp_path / "a.safetensors", dtype="fp32")
    assert load_path(only.path, base="sd15").offsets.keys() == asked.offsets.keys()
    only = save(lh.Adapter("sd15", {}, {}, asked.embeddings), tmp_path / "b.safetensors")
    assert load_path(only.path, base="sd15").embeddings.keys() == {"<dot>"}


# size


@pytest.mark.parametrize(
    ("base", "form"), [("flux1", "kohya"), ("flux1", "diffusers"), ("sd15", "peft"), ("sd15", "kohya")]
)
def test_a_budget_is_kept_whatever_the_format_fuses_or_writes_twice(base: str, form: str, tmp_path: Path) -> None:
    """Long metadata is written once for each component of a PEFT folder, and a fused qkv pays for three layers' rows."""
    known = bases.get(base)
    component = next(iter(known.components))
    names = [f"{component}.{module}" for module in known.components[component].layers if in_first_attentions(module)]
    encoders = [f"text_encoder.text_model.encoder.layers.{n}.self_attn.{x}_proj" for n in range(4) for x in "qv"]
    raw = making.trained(known, names + encoders, seed=1, ranks=(8,))
    loaded = from_state_dict(making.peft_keys(raw), base=base, name="style")
    asked = lh.Adapter(base, loaded.layers, recipe=Source("style", "00", {"ss_tag_frequency": "x" * 20_000}))
    size = 1_500_000 if base == "flux1" else 600_000
    reduced = lh.truncate(asked, file_budget(asked, size, format=form, dtype="fp16"), dtype=torch.float16)
    saved = save(reduced, tmp_path / ("a" if form == "peft" else "a.safetensors"), format=form, max_size=size)
    assert 0.6 * size < saved.size <= size


def in_first_attentions(module: str) -> bool:
    return ".0." in module and "attn" in module


def test_a_budget_makes_room_for_offsets_and_embeddings(tmp_path: Path) -> None:
    asked = with_extras()
    asked = lh.Adapter("sd15", asked.layers, asked.offsets, {"<dot>": torch.randn(40, 768)}, asked.recipe)
    size = 180_000
    reduced = lh.truncate(asked, file_budget(asked, size, format="kohya", dtype="fp16"), dtype=torch.float16)
    saved = save(reduced, tmp_path / "a.safetensors", max_size=size)
    assert saved.size <= size
    assert load_path(saved.path).embeddings["<dot>"].shape == (40, 768)


def test_a_result_that_is_too_large_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="more than the 1000 allowed"):
        save(style(), tmp_path / "a.safetensors", max_size=1000)
    with pytest.raises(UsageError, match="1000 bytes are less than the header alone needs"):
        file_budget(style(), 1000, format="kohya", dtype="fp16")
    assert listing(tmp_path) == []


def test_what_the_file_does_not_hold_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check reads the file, so an encoder that loses a layer cannot report success."""
    whole = saving.encode_kohya
    monkeypatch.setattr(saving, "encode_kohya", lambda layers, *rest: whole(dict(list(layers.items())[1:]), *rest))
    with pytest.raises(VerificationError, match=r"ΔW differs by .* \(most in unet\.down_blocks"):
        save(style(), tmp_path / "a.safetensors", dtype="fp32")
    assert listing(tmp_path) == []


def test_errors_are_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(LorahubError) as caught:
        save(style(), tmp_path / "missing" / "a.safetensors")
    assert "\n" not in str(caught.value)
