"""Combinations that diffusers applies itself, against the one file lorahub makes of them.

Two adapters in different spellings, with mixed ranks and alphas, convolutions and text encoders. The dense merge into the
weights, in float64, is the third witness.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lorahub as lh
from lorahub.bases.model import Base
from lorahub.files.loading import load_path
from lorahub.files.saving import file_budget, save

from . import making, tiny

# Both libraries warn of their own deprecations, and peft of every second adapter; none of it is about the files.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
]
WEIGHTS = (0.8, 1.0)
UNSUPPORTED = "text_projection"
"""A layer that diffusers' kohya converter leaves out."""
UNSUPPORTED_BY_DIFFUSERS_NAME = "add_embedding"
"""And one that it knows by its sgm name only, in which we write it."""


@dataclass(frozen=True, eq=False)
class Case:
    """Two trained adapters, their files, and what a pipeline that carries both draws."""

    family: str
    base: Base
    first: making.Trained
    second: making.Trained
    files: tuple[Path, Path]
    plain: dict[str, Tensor]
    drawn: dict[str, Tensor]

    @property
    def deltas(self) -> making.Deltas:
        return making.mixture((WEIGHTS[0], making.deltas(self.first)), (WEIGHTS[1], making.deltas(self.second)))

    def load(self, which: int) -> lh.Adapter:
        return load_path(self.files[which], base=self.base)

    def combined(self) -> lh.Adapter:
        return WEIGHTS[0] * self.load(0) + WEIGHTS[1] * self.load(1)

    def merged(self, deltas: making.Deltas) -> dict[str, Tensor]:
        """What the pipeline draws with ΔW added to its weights."""
        pipe = tiny.MAKERS[self.family]()
        making.merge(tiny.models(pipe), deltas)
        return tiny.draw(pipe)

    def with_file(self, path: Path) -> dict[str, Tensor]:
        """What the pipeline draws after diffusers has loaded the file."""
        pipe = tiny.MAKERS[self.family]()
        pipe.load_lora_weights(str(path))
        return tiny.draw(pipe)


@cache
def reduce(case: Case, rule: str) -> lh.Truncated:
    rules = {"energy": lh.energy(0.9), "budget": lh.budget(200_000, bytes_per_element=4)}
    return lh.truncate(case.combined(), rules[rule])


def encoders(family: str) -> dict[str, str]:
    return {"text_encoder": "lora_te"} if family == "sd15" else making.TEXT_ENCODERS


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family, folder = request.param, tmp_path_factory.mktemp(request.param)
    base = tiny.base(family)
    names = [f"{part.name}.{module}" for part in base.components.values() for module in part.layers]
    names = [name for name in names if UNSUPPORTED not in name]
    kohya_names = [name for name in names if UNSUPPORTED_BY_DIFFUSERS_NAME not in name]
    first = making.trained(base, kohya_names, seed=1)  # with one alpha: diffusers loses mixed ones of kohya files
    second = making.trained(base, names[::2], seed=2, alphas=(1.0, 2.0, 6.0, 4.0, 5.0))
    files = (
        making.written(making.kohya(first, encoders(family)), folder / "first.safetensors"),
        making.written(making.peft_keys(second), folder / "second.safetensors", making.peft_metadata(second)),
    )
    pipe = tiny.MAKERS[family]()
    plain = tiny.draw(pipe)
    for path in files:
        pipe.load_lora_weights(str(path), adapter_name=path.stem)
    pipe.set_adapters([path.stem for path in files], list(WEIGHTS))
    return Case(family, base, first, second, files, plain, tiny.draw(pipe))


def test_diffusers_applies_the_sum_that_is_meant(case: Case) -> None:
    tiny.assert_same_drawing(case.merged(case.deltas), case.drawn)
    assert min(tiny.difference(case.plain, case.drawn).values()) > 0.5  # all components draw something else


def test_the_combination_is_the_sum_of_dense_matrices(case: Case) -> None:
    combined = case.combined()
    assert combined.base == f"tiny-{case.family}"
    assert making.apart(case.deltas, making.dense(combined)) < 1e-9
    assert len({layer.shape[2:] for layer in combined.layers.values()}) == 3  # linear, 1x1, 3x3
    assert len({layer.rank for layer in combined.layers.values()}) > 3


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_one_combined_file_draws_what_diffusers_draws_with_both(case: Case, form: str, tmp_path: Path) -> None:
    saved = save(case.combined(), tmp_path / "both.safetensors", format=form, dtype="fp32", base=case.base)
    assert saved.error < 1e-6
    tiny.assert_same_drawing(case.drawn, case.with_file(saved.path))


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
@pytest.mark.parametrize("rule", ["energy", "budget"])
def test_a_rank_reduced_file_of_mixed_ranks_draws_what_it_holds(
    case: Case, form: str, rule: str, tmp_path: Path
) -> None:
    reduced = reduce(case, rule)
    assert len({layer.rank for layer in reduced.layers.values()}) > 2
    assert 0.05 < reduced.relative_error < 0.6
    saved = save(reduced, tmp_path / "both.safetensors", format=form, dtype="fp32", base=case.base)
    tiny.assert_same_drawing(case.merged(making.dense(reduced)), case.with_file(saved.path))


def test_kohya_files_name_the_unet_as_the_trainers_of_the_family_do(case: Case, tmp_path: Path) -> None:
    saved = save(case.combined(), tmp_path / "both.safetensors", dtype="fp32", base=case.base)
    keys = making.header(saved.path).keys()
    block = {"sd15": "down_blocks_1_attentions_0", "sdxl": "input_blocks_4_1"}[case.family]
    assert f"lora_unet_{block}_transformer_blocks_0_attn1_to_q.lora_down.weight" in keys
    starts = {key.split("_")[1] for key in keys if key != "__metadata__"}
    assert starts == ({"unet", "te"} if case.family == "sd15" else {"unet", "te1", "te2"})


def before_peft(raw: making.Trained) -> dict[str, Tensor]:
    """`.lora.down` in attentions and `.lora_linear_layer.` in encoders, beside `lora_A` for the rest; no alpha."""
    tensors = {}
    for key, tensor in making.peft_keys(raw).items():
        infix = "lora_linear_layer" if key.startswith("text_encoder") else "lora"
        if infix == "lora_linear_layer" or "attn" in key:
            key = key.replace("lora_A", f"{infix}.down").replace("lora_B", f"{infix}.up")
        tensors[key] = tensor
    return tensors


def unscaled(raw: making.Trained) -> making.Deltas:
    return {name: layer.delta * layer.rank / layer.alpha for name, layer in raw.items()}


def test_what_diffusers_wrote_before_peft_is_read_as_diffusers_reads_it(case: Case, tmp_path: Path) -> None:
    raw = {
        name: layer
        for name, layer in case.second.items()
        if "attn" in name or name.startswith(("text_encoder", "unet.up_blocks"))
    }
    path = making.written(before_peft(raw), tmp_path / "old.safetensors")
    adapter = load_path(path, base=case.base)
    assert making.apart(unscaled(raw), making.dense(adapter)) < 1e-9
    tiny.assert_same_drawing(case.merged(unscaled(raw)), case.with_file(path))


@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters:RuntimeWarning")
def test_a_file_of_both_spellings_that_diffusers_misreads_is_read_and_written_right(case: Case, tmp_path: Path) -> None:
    """Where the first key happens to be a `lora_A`, diffusers leaves the other spelling out (P21)."""
    path = making.written(before_peft(case.second), tmp_path / "old.safetensors")
    adapter = load_path(path, base=case.base)
    assert making.apart(unscaled(case.second), making.dense(adapter)) < 1e-9
    right = case.merged(unscaled(case.second))
    assert tiny.difference(right, case.with_file(path))["unet"] > 0.05
    ours = save(adapter, tmp_path / "ours.safetensors", format="diffusers", dtype="fp32", base=case.base)
    tiny.assert_same_drawing(right, case.with_file(ours.path))


def test_a_kohya_file_with_alpha_equal_to_mixed_ranks_loads_wrong_in_diffusers(case: Case, tmp_path: Path) -> None:
    """Why our kohya files have one alpha: diffusers gives attention layers the most common one (of P12)."""
    naive = {
        name: making.Raw(layer.shape, layer.up * layer.alpha / layer.rank, layer.down, float(layer.rank))
        for name, layer in case.first.items()
    }
    deltas = making.deltas(case.first)
    assert making.apart(deltas, making.deltas(naive)) < 1e-6
    path = making.written(making.kohya(naive, encoders(case.family)), tmp_path / "naive.safetensors")
    right = case.merged(deltas)
    with pytest.warns(RuntimeWarning, match="alpha_pattern keys did not match any targeted module"):
        wrong = case.with_file(path)
    assert tiny.difference(right, wrong)["unet"] > 0.05
    adapter = load_path(path, base=case.base)
    assert making.apart(deltas, making.dense(adapter)) < 1e-6
    ours = save(adapter, tmp_path / "ours.safetensors", format="kohya", dtype="fp32", base=case.base)
    tiny.assert_same_drawing(right, case.with_file(ours.path))


@pytest.mark.filterwarnings("error:Found missing adapter keys")
def test_peft_loads_the_folder_of_every_component(case: Case, tmp_path: Path) -> None:
    from peft import PeftModel

    reduced = reduce(case, "energy")
    saved = save(reduced, tmp_path / "both", dtype="fp32", base=case.base)
    assert {path.name for path in saved.path.iterdir()} == set(case.base.components)
    pipe = tiny.MAKERS[case.family]()
    for component, model in tiny.models(pipe).items():
        PeftModel.from_pretrained(model, str(saved.path / component))
    tiny.assert_same_drawing(case.merged(making.dense(reduced)), tiny.draw(pipe))
    assert making.apart(making.dense(reduced), making.dense(load_path(saved.path, base=case.base))) < 1e-6


def test_diffusers_loads_the_peft_folder_of_a_unet_alone(case: Case, tmp_path: Path) -> None:
    combined = case.combined()
    only = lh.weighted(combined, {"^text_encoder": 0.0})
    saved = save(only, tmp_path / "unet", dtype="fp32", base=case.base)
    assert {path.name for path in saved.path.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    pipe = tiny.MAKERS[case.family]()
    pipe.unet.load_lora_adapter(
        str(saved.path), weight_name="adapter_model.safetensors", prefix="base_model.model", adapter_name="lh"
    )
    tiny.assert_same_drawing(case.merged(making.dense(only)), tiny.draw(pipe))


@pytest.mark.parametrize("form", ["kohya", "diffusers", "peft"])
def test_a_size_that_was_asked_for_is_kept_and_used(case: Case, form: str, tmp_path: Path) -> None:
    from lorahub import bases

    bases.register(case.base)
    combined = case.combined()
    size = 250_000 if form == "kohya" else 400_000
    reduced = lh.truncate(combined, file_budget(combined, size, format=form, dtype="fp16"), dtype=torch.float16)
    saved = save(reduced, tmp_path / ("a" if form == "peft" else "a.safetensors"), format=form, max_size=size)
    assert 0.5 * size < saved.size <= size
    assert saved.layers > 50
