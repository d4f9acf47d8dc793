"""Scale facts from adapter_config.json and diffusers' lora_adapter_metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import sqrt

import pytest

from lorahub.errors import FileFormatError
from lorahub.formats.layout import Layout, parse

from .samples import RANK, Shapes, kohya, loha, peft


def with_config(shapes: Shapes, **config: object) -> Layout:
    return parse(shapes, config=config)


def with_metadata(shapes: Shapes, fields: Mapping[str, object]) -> Layout:
    return parse(shapes, {"lora_adapter_metadata": json.dumps(fields)})


def scales(layout: Layout) -> dict[str, float | None]:
    return {module.name: module.scale for module in layout.modules}


def test_alpha_over_rank() -> None:
    assert scales(with_config(peft("base_model.model.q"), r=RANK, lora_alpha=2)) == {"q": 2 / RANK}


def test_alpha_defaults_to_eight_as_in_peft() -> None:
    assert scales(with_config(peft("base_model.model.q"), r=RANK)) == {"q": 8 / RANK}
    assert scales(with_config(loha("base_model.model.q"), r=RANK, peft_type="LOHA")) == {"q": None}


def test_rank_stabilised() -> None:
    layout = with_config(peft("base_model.model.q"), r=RANK, lora_alpha=6, use_rslora=True)
    assert scales(layout) == {"q": 6 / sqrt(RANK)}
    assert layout.modules[0].rslora


def test_an_alpha_tensor_outranks_the_configuration() -> None:
    module = with_config(kohya("base_model.model.q"), r=99, lora_alpha=7, use_rslora=True).modules[0]
    assert (module.alpha, module.scale, module.rslora) == (None, None, False)
    assert module.scale_with(2.0) == 2 / RANK


def test_the_first_pattern_that_matches_decides_and_the_rest_get_the_global_alpha() -> None:
    shapes = peft("base_model.model.a.q", 2) | peft("base_model.model.a.qq", 4) | peft("base_model.model.b.q", 3)
    layout = with_config(
        shapes, r=4, lora_alpha=6, rank_pattern={"^b.q": 3, "q": 2}, alpha_pattern={"q": 1, "b.q": 100}
    )
    # no alpha_pattern for `qq`: its end is not a segment of its own; without one, alpha stays while the rank differs
    assert scales(layout) == {"a.q": 1 / 2, "a.qq": 6 / 4, "b.q": 1 / 3}


def test_a_rank_pattern_alone_changes_the_scale_of_its_modules() -> None:
    shapes = peft("base_model.model.q", 2) | peft("base_model.model.k", 4)
    assert scales(with_config(shapes, r=4, lora_alpha=4, rank_pattern={"q": 2})) == {"q": 2.0, "k": 1.0}


def test_diffusers_metadata_is_taken_by_component() -> None:
    shapes = peft("unet.q") | peft("text_encoder.k", 2) | peft("text_encoder_2.v")
    layout = with_metadata(
        shapes, {"unet.r": 4, "unet.lora_alpha": 8, "text_encoder.r": 2, "text_encoder.lora_alpha": 1}
    )
    assert scales(layout) == {"q": 2.0, "k": 0.5, "v": 1.0}
    assert any("1 modules (v" in note for note in layout.notes)


def test_diffusers_metadata_of_a_single_model_is_unprefixed() -> None:
    fields = {"r": 4, "lora_alpha": 2, "rank_pattern": {}}
    assert scales(with_metadata(peft("mid.q"), fields)) == {"mid.q": 0.5}
    assert scales(with_metadata(peft("unet.mid.q"), fields)) == {"mid.q": 0.5}


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"use_dora": True}, "dora"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"init_lora_weights": "corda"}, "corda"),
        ({"init_lora_weights": "lora_ga"}, "lora_ga"),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"kasa_config": {"beta": 1}}, "kasa"),
        ({"alora_invocation_tokens": [1, 2]}, "alora"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "layer_replication"),
        ({"use_qalora": True}, "qalora"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
    ],
)
def test_features_that_are_no_vector_are_named(config: dict[str, object], kind: str) -> None:
    layout = with_config(peft("base_model.model.q"), r=RANK, **config)
    assert [module.kind for module in layout.modules] == [kind]
    assert any(f"adapter_config.json: {kind}: " in note for note in layout.notes)


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal"])
def test_initialisations_that_leave_the_base_alone_are_plain_lora(init: object) -> None:
    assert with_config(peft("base_model.model.q"), r=RANK, init_lora_weights=init).modules[0].kind == "lora"


def test_trained_copies_are_recognised_and_no_vector() -> None:
    shapes = {
        **peft("base_model.model.q"),
        "base_model.model.conv_in.weight": (4, 4, 3, 3),
        "base_model.model.conv_in.bias": (4,),
        "base_model.model.other.weight": (4, 4),
        "base_model.model.q.bias": (12,),
    }
    layout = with_config(shapes, r=RANK, modules_to_save=["conv_in"], bias="all")
    assert {(module.name, module.kind) for module in layout.modules} == {
        ("q", "lora"),
        ("conv_in", "replace"),
        ("q", "replace"),
    }
    assert layout.unknown == ("base_model.model.other.weight",)
    assert len(parse(shapes).unknown) == 4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "VERA"}, "found VERA"),
        ({"r": 5}, r"base_model.model.q: expected rank 5 \(adapter_config.json\), found 4"),
        ({"r": "four"}, "expected a whole number above 0 for r, found 'four'"),
        ({"r": 0}, "expected a whole number above 0 for r"),
        ({"r": float("nan")}, "expected a whole number above 0 for r"),
        ({"r": 4, "rank_pattern": {"q": 2.5}}, r"expected a whole number above 0 for rank_pattern\[q\]"),
        ({"r": 4, "lora_alpha": float("inf")}, "expected a number for lora_alpha"),
        ({"r": 4, "lora_alpha": 10**400}, "expected a number for lora_alpha"),
        ({"r": 4, "lora_alpha": True}, "expected a number for lora_alpha"),
        ({"r": 4, "rank_pattern": [1]}, "expected an object for rank_pattern"),
        ({"r": 4, "rank_pattern": {"(": 1}}, "regular expressions"),
        ({"r": 4, "modules_to_save": "conv_in"}, "expected a list for modules_to_save"),
    ],
)
def test_bad_configurations_are_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        with_config(peft("base_model.model.q"), **config)


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, '{"unet.r": "x"}'])
def test_bad_metadata_is_refused(text: str) -> None:
    with pytest.raises(FileFormatError, match="lora_adapter_metadata"):
        parse(peft("unet.q"), {"lora_adapter_metadata": text})
