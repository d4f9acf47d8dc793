"""attach, detach and load on live pipelines: the same drawing as a loaded file and as a dense merge, and back to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorahub as lh
from lorahub.algebra.recipe import Source
from lorahub.bases.model import Base
from lorahub.errors import (
    BaseMismatchError,
    ConflictError,
    NotAdditiveError,
    NotFoundError,
    UsageError,
    VerificationError,
)
from lorahub.files.building import from_state_dict
from lorahub.files.saving import save
from tests.files import making, tiny

# Both libraries warn of their own deprecations, and peft of every second adapter; none of it is about ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
]
EVERYWHERE = ("to_q", "to_out.0", "ff.net.2", "proj_in", "conv1", "conv_shortcut", "time_emb_proj", "fc1", "q_proj")


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def base(family: str) -> Base:
    return tiny.base(family)


@pytest.fixture
def pipe(family: str) -> Any:
    return tiny.MAKERS[family]()


def layers(base: Base, *ends: str, component: str = "") -> list[str]:
    """The layers whose names end so."""
    names = [f"{part.name}.{module}" for part in base.components.values() for module in part.layers]
    return [name for name in names if name.endswith(ends or EVERYWHERE) and name.startswith(component)]


def adapter(base: Base, *ends: str, seed: int = 1, component: str = "", name: str = "style") -> lh.Adapter:
    raw = making.trained(base, layers(base, *ends, component=component), seed=seed, alphas=(3.0, 1.0, 2.0, 5.0, 6.0))
    return from_state_dict(making.peft_keys(raw), base=base, name=name, metadata=making.peft_metadata(raw))


def merged(family: str, *terms: tuple[float, lh.Adapter]) -> dict[str, Tensor]:
    """What a fresh pipeline draws with the adapters added to its weights."""
    pipe = tiny.MAKERS[family]()
    making.merge(tiny.models(pipe), making.mixture(*((weight, making.dense(each)) for weight, each in terms)))
    return tiny.draw(pipe)


def modules(pipe: Any) -> dict[str, list[tuple[str, type[nn.Module]]]]:
    return {part: [(name, type(m)) for name, m in model.named_modules()] for part, model in tiny.models(pipe).items()}


def assert_identical(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert all(torch.equal(answer, other[name]) for name, answer in one.items())


def test_attaching_is_a_dense_merge_and_loading_the_file(family: str, base: Base, pipe: Any, tmp_path: Path) -> None:
    style = adapter(base)
    assert len({layer.shape[2:] for layer in style.layers.values()}) == 3
    assert {name.partition(".")[0] for name in style.layers} == set(base.components)
    plain = tiny.draw(pipe)
    lh.attach(pipe, style)
    drawn = tiny.draw(pipe)
    assert min(tiny.difference(plain, drawn).values()) > 0.1
    tiny.assert_same_drawing(merged(family, (1.0, style)), drawn)
    saved = save(style, tmp_path / "style.safetensors", format="kohya", dtype="fp32", base=base)
    other = tiny.MAKERS[family]()
    other.load_lora_weights(str(saved.path))
    tiny.assert_same_drawing(tiny.draw(other), drawn)


def test_the_weight_scales_and_the_pipelines_own_verbs_work_on_it(family: str, base: Base, pipe: Any) -> None:
    style = adapter(base)
    plain = tiny.draw(pipe)
    lh.attach(pipe, style, name="style", weight=0.5)
    assert pipe.get_active_adapters() == ["style"]
    tiny.assert_same_drawing(merged(family, (0.5, style)), tiny.draw(pipe))
    pipe.set_adapters(["style"], [-1.5])
    tiny.assert_same_drawing(merged(family, (-1.5, style)), tiny.draw(pipe))
    pipe.disable_lora()
    assert_identical(plain, tiny.draw(pipe))


def test_detaching_gives_back_the_drawing_to_the_bit_and_the_modules(base: Base, pipe: Any) -> None:
    plain, before = tiny.draw(pipe), modules(pipe)
    lh.attach(pipe, adapter(base))
    assert modules(pipe) != before
    lh.detach(pipe)
    assert_identical(plain, tiny.draw(pipe))
    assert modules(pipe) == before
    lh.attach(pipe, adapter(base, seed=2))  # and the name is free again
    lh.detach(pipe)
    assert_identical(plain, tiny.draw(pipe))


def test_the_last_attached_is_the_active_one_in_every_component(family: str, base: Base, pipe: Any) -> None:
    style, sharp = adapter(base), adapter(base, "to_v", "conv2", component="unet", seed=2, name="sharp")
    lh.attach(pipe, style, name="style", weight=0.7)
    lh.attach(pipe, sharp, name="sharp")
    tiny.assert_same_drawing(merged(family, (1.0, sharp)), tiny.draw(pipe))
    pipe.set_adapters(["style", "sharp"], [0.7, -0.4])
    tiny.assert_same_drawing(merged(family, (0.7, style), (-0.4, sharp)), tiny.draw(pipe))


def test_detaching_one_of_two_brings_back_what_was_drawn_before_it(base: Base, pipe: Any) -> None:
    lh.attach(pipe, adapter(base), name="style", weight=0.7)
    lh.attach(pipe, adapter(base, "to_v", component="unet", seed=3), name="blur")
    pipe.set_adapters(["style", "blur"], [0.7, 0.2])
    before = tiny.draw(pipe)
    lh.attach(pipe, adapter(base, "to_v", "conv2", seed=2), name="sharp")
    lh.detach(pipe, "sharp")
    assert_identical(before, tiny.draw(pipe))
    lh.detach(pipe, "blur")  # one of two active ones: the other stays
    assert pipe.get_active_adapters() == ["style"]


def test_detaching_one_that_is_not_active_changes_nothing(base: Base, pipe: Any) -> None:
    lh.attach(pipe, adapter(base), name="style")
    lh.attach(pipe, adapter(base, seed=2), name="sharp", weight=0.3)
    before = tiny.draw(pipe)
    lh.detach(pipe, "style")
    assert_identical(before, tiny.draw(pipe))


def test_what_is_attached_loads_back_as_the_same_vector(base: Base, pipe: Any) -> None:
    style, sharp = adapter(base), adapter(base, "to_v", seed=2)
    lh.attach(pipe, style, name="style", weight=0.25)
    found = lh.load(pipe, base=base)
    assert (
        making.apart(making.dense(style), making.dense(found)) < 1e-6
    )  # the weight is the pipeline's, not the vector's
    assert found.layers.keys() == style.layers.keys()
    lh.attach(pipe, sharp, name="sharp")
    assert making.apart(making.dense(sharp), making.dense(lh.load(pipe, base=base, adapter="sharp"))) < 1e-6
    source = lh.load(pipe, base=base, adapter="style").recipe
    assert isinstance(source, Source)
    assert source.name == "style"
    assert len(source.data_sha256) == 64


def test_an_adapter_that_the_libraries_loaded_is_read_with_its_scales(base: Base, pipe: Any, tmp_path: Path) -> None:
    raw = making.trained(base, layers(base), seed=4, alphas=(3.0, 1.0, 2.0, 5.0, 6.0))
    path = making.written(making.peft_keys(raw), tmp_path / "a.safetensors", making.peft_metadata(raw))
    pipe.load_lora_weights(str(path), adapter_name="theirs")
    pipe.set_adapters(["theirs"], [0.5])
    assert making.apart(making.deltas(raw), making.dense(lh.load(pipe, base=base))) < 1e-6


def test_rank_stabilised_adapters_on_a_pipeline_have_their_own_scale(base: Base, pipe: Any) -> None:
    from peft import LoraConfig

    pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=["to_q"]), "rs")
    for name, parameter in pipe.unet.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(parameter)
    found = making.dense(lh.load(pipe, base=base))
    layer = next(name for name in found if "to_q" in name)
    module = pipe.unet.get_submodule(layer.removeprefix("unet."))
    torch.testing.assert_close(found[layer].float(), module.get_delta_weight("rs").detach(), rtol=1e-5, atol=1e-5)
    assert module.scaling["rs"] == 3.0


def test_a_dora_on_a_pipeline_is_refused(base: Base, pipe: Any) -> None:
    from peft import LoraConfig

    pipe.unet.add_adapter(LoraConfig(r=4, use_dora=True, target_modules=["to_q"]), "dora")
    with pytest.raises(NotAdditiveError, match="DoRA"):
        lh.load(pipe, base=base)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_factors_take_the_dtype_of_their_component(base: Base, pipe: Any, dtype: torch.dtype) -> None:
    """Also factors far from one another, whose product is an ordinary number, while one of them would vanish."""
    pipe.unet.to(dtype)
    style = adapter(base, "to_q", "conv1", "fc1")
    skewed = lh.Adapter(
        style.base,
        {
            name: lh.LowRank.of(layer.up * 1e-7, layer.down * 1e7, shape=layer.shape)
            for name, layer in style.layers.items()
        },
    )
    lh.attach(pipe, skewed)
    kept = {name: p.dtype for name, p in pipe.unet.named_parameters() if ".lora_" in name}
    assert set(kept.values()) == {dtype}
    assert {p.dtype for p in pipe.text_encoder.parameters()} == {torch.float32}
    found = making.dense(lh.load(pipe, base=base))
    assert making.apart(making.dense(style), found) < {torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]


def test_factors_that_do_not_fit_half_precision_are_refused_before_anything_is_touched(base: Base, pipe: Any) -> None:
    pipe.unet.to(torch.float16)
    before = modules(pipe)
    with pytest.raises(VerificationError, match=r"do not fit torch\.float16"):
        lh.attach(pipe, 1e14 * adapter(base))
    assert modules(pipe) == before


def test_an_embedding_layer_attaches_as_peft_embeddings_do(family: str, base: Base, pipe: Any) -> None:
    raw = making.trained(base, ["text_encoder.text_model.embeddings.token_embedding"], seed=1, size=1.0)
    tokens = from_state_dict(
        {
            "text_encoder.text_model.embeddings.token_embedding.lora_embedding_A": next(iter(raw.values())).up.T,
            "text_encoder.text_model.embeddings.token_embedding.lora_embedding_B": next(iter(raw.values())).down.T,
        },
        base=base,
    )
    lh.attach(pipe, tokens)
    tiny.assert_same_drawing(merged(family, (1.0, tokens)), tiny.draw(pipe))
    assert making.apart(making.dense(tokens), making.dense(lh.load(pipe, base=base))) < 1e-6


def test_a_name_in_use_is_refused_also_in_a_component_that_the_new_one_leaves_alone(base: Base, pipe: Any) -> None:
    lh.attach(pipe, adapter(base, component="text_encoder"), name="style")
    with pytest.raises(ConflictError, match="carries an adapter 'style' already"):
        lh.attach(pipe, adapter(base, component="unet"), name="style")


def test_layers_that_the_pipeline_lacks_are_refused_before_anything_is_touched(base: Base, pipe: Any) -> None:
    style = adapter(base)
    before = modules(pipe)
    shape = (8, 8)
    for name, message in {
        "unet.nothing.to_q": r"unet\.nothing\.to_q: the adapter needs \[8, 8\], the pipeline's is absent",
        "unet.conv_in": r"needs \[8, 8\], the pipeline's is \[8, 4, 3, 3\]",
        "transformer.proj": "the pipeline has no transformer",
    }.items():
        wrong = lh.LowRank.of(torch.ones(8, 1), torch.ones(1, 8), shape=shape)
        with pytest.raises(BaseMismatchError, match=message):
            lh.attach(pipe, lh.Adapter(style.base, {**style.layers, name: wrong}))
    assert modules(pipe) == before


def test_what_cannot_be_attached_says_why(base: Base, pipe: Any) -> None:
    style = adapter(base)
    with pytest.raises(UsageError, match="has offsets"):
        lh.attach(pipe, lh.Adapter(style.base, style.layers, {"unet.conv_in.bias": torch.ones(8)}))
    with pytest.raises(UsageError, match="is zero: there is nothing to attach"):
        lh.attach(pipe, style - style)


def test_weights_that_are_not_in_memory_are_refused(base: Base, pipe: Any) -> None:
    pipe.unet.to("meta")
    with pytest.raises(UsageError, match="weights of unet are offloaded"):
        lh.attach(pipe, adapter(base))


def test_names_that_are_not_there_are_told_with_those_that_are(base: Base, pipe: Any) -> None:
    with pytest.raises(NotFoundError, match="no adapter 'lorahub': it has none"):
        lh.detach(pipe)
    with pytest.raises(NotFoundError, match="it has none"):
        lh.load(pipe)
    lh.attach(pipe, adapter(base), name="style")
    with pytest.raises(NotFoundError, match="no adapter 'stile': it has style"):
        lh.detach(pipe, "stile")
    lh.attach(pipe, adapter(base, seed=2), name="sharp")
    with pytest.raises(UsageError, match=r"several adapters \(style, sharp\)"):
        lh.load(pipe)
    with pytest.raises(NotFoundError, match="it has style, sharp"):
        lh.load(pipe, adapter="blur")


def test_a_fused_attachment_can_be_unfused(family: str, base: Base, pipe: Any) -> None:
    style = adapter(base)
    lh.attach(pipe, style)
    parts = list(tiny.models(pipe))
    pipe.fuse_lora(components=parts, lora_scale=1.0)
    tiny.assert_same_drawing(merged(family, (1.0, style)), tiny.draw(pipe))
    pipe.unfuse_lora(components=parts)
    tiny.assert_same_drawing(merged(family, (1.0, style)), tiny.draw(pipe))
