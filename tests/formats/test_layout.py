"""From a header to modules: formats, kinds, sizes, companions; every key accounted for; contradictions refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, strategies as st

from lorahub.bases.detect import Seen
from lorahub.errors import FileFormatError
from lorahub.formats.layout import FORMATS, Module, parse, seen

from .samples import INN, OUT, RANK, Shapes, kohya, loha, lokr, pair, peft

ATTN = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"

SPELLINGS: list[tuple[str, Shapes]] = [
    ("kohya", kohya("lora_unet_mid_block_attn1_to_q")),
    ("lycoris", loha("lora_unet_mid_block_attn1_to_q")),
    ("lycoris", lokr("lycoris_blocks_0_q")),
    ("diffusers", pair(f"unet.{ATTN}.to_q.lora.up.weight", f"unet.{ATTN}.to_q.lora.down.weight")),
    ("diffusers", peft(f"unet.{ATTN}.to_q")),
    ("diffusers", peft("transformer.transformer_blocks.0.attn.to_q")),
    ("diffusers-old", pair(f"{ATTN}.processor.to_q_lora.up.weight", f"{ATTN}.processor.to_q_lora.down.weight")),
    ("peft", peft("base_model.model.blocks.0.q")),
    ("peft", peft("unet.base_model.model.conv_in")),
    ("peft", loha("base_model.model.blocks.0.q")),
    ("peft", peft("transformer_blocks.0.attn.to_q")),
    ("comfy", peft("diffusion_model.blocks.0.self_attn.q")),
    ("comfy", kohya("diffusion_model.blocks.0.self_attn.q")),
    ("comfy", kohya("transformer_blocks.0.attn.to_q")),
    ("comfy", lokr("diffusion_model.double_blocks.0.img_attn.qkv")),
    ("onetrainer", kohya("lora_transformer_transformer_blocks_0_attn_to_q")),
    ("omi", kohya("transformer.double_blocks.0.img_attn.qkv.0")),
    ("omi", kohya("clip_l.text_projection")),
    ("xlabs", pair("double_blocks.0.processor.qkv_lora1.up.weight", "double_blocks.0.processor.qkv_lora1.down.weight")),
    ("unknown", {}),
    ("unknown", {"conv_in.weight": (4, 4)}),
]


@pytest.mark.parametrize(("name", "shapes"), SPELLINGS, ids=[f"{name}-{n}" for n, (name, _) in enumerate(SPELLINGS)])
def test_format_is_the_spelling(name: str, shapes: Shapes) -> None:
    assert parse(shapes).format == name
    assert name in FORMATS


def test_writable_formats() -> None:
    assert {name for name, form in FORMATS.items() if form.writable} == {"kohya", "diffusers", "peft"}


def test_a_file_that_mixes_spellings_is_named_after_most_of_it_and_says_so() -> None:
    shapes = {
        **pair(f"unet.{ATTN}.to_q.lora.up.weight", f"unet.{ATTN}.to_q.lora.down.weight"),
        **peft("unet.conv_in"),
        **kohya("lora_te_text_model_encoder_layers_0_mlp_fc1"),
    }
    layout = parse(shapes)
    assert layout.format == "diffusers"
    assert "spellings: 2 modules diffusers, 1 modules kohya" in layout.notes


def only(shapes: Shapes, **settings: object) -> Module:
    layout = parse(shapes, **settings)  # type: ignore[arg-type]
    assert not layout.unknown
    (module,) = layout.modules
    return module


def size(module: Module) -> tuple[str, int, int | None, int | None, tuple[int, ...]]:
    return module.kind, module.rank, module.out, module.inn, module.kernel


CONV = {"m.lokr_w1": (2, 3), "m.lokr_w2": (6, 5, 3, 3)}
KINDS: list[tuple[Shapes, tuple[object, ...]]] = [
    (kohya("m"), ("lora", RANK, OUT, INN, ())),
    (kohya("m", kernel=(3, 3)), ("lora", RANK, OUT, INN * 9, (3, 3))),
    (kohya("m", kernel=(1, 1)), ("lora", RANK, OUT, INN, (1, 1))),
    (kohya("m", kernel=(3,)), ("lora", RANK, OUT, INN * 3, (3,))),
    ({**kohya("m", kernel=(1, 1)), "m.lora_mid.weight": (RANK, RANK, 3, 3)}, ("tucker", RANK, OUT, INN * 9, (3, 3))),
    (loha("m"), ("loha", RANK, OUT, INN, ())),
    (
        {
            **{f"m.hada_w{n}_{x}": (RANK, size) for n in (1, 2) for x, size in (("a", OUT), ("b", INN))},
            **{f"m.hada_t{n}": (RANK, RANK, 3, 3) for n in (1, 2)},
        },
        ("loha", RANK, OUT, INN * 9, (3, 3)),
    ),
    (lokr("m"), ("lokr", RANK, 24, 30, ())),
    (CONV, ("lokr", 0, 12, 15 * 9, (3, 3))),
    (
        {"m.lokr_w1": (2, 3), "m.lokr_w2_a": (4, 6), "m.lokr_w2_b": (4, 5), "m.lokr_t2": (4, 4, 3, 3)},
        ("lokr", 4, 12, 15 * 9, (3, 3)),
    ),
    (
        {"m.lokr_w1_a": (2, 1), "m.lokr_w1_b": (1, 3), "m.lokr_w2": (6, 5)},
        ("lokr", 1, 12, 15, ()),
    ),
    ({"m.diff": (OUT, INN), "m.diff_b": (OUT,)}, ("full", INN, OUT, INN, ())),
    ({"m.diff": (OUT, 4, 3, 3)}, ("full", OUT, OUT, 36, (3, 3))),
    ({"m.diff": (OUT,), "m.diff_b": (OUT,)}, ("norm", 0, OUT, None, ())),
    ({"m.w_norm": (OUT,), "m.b_norm": (OUT,)}, ("norm", 0, OUT, None, ())),
    ({"m.diff_b": (OUT,)}, ("norm", 0, OUT, None, ())),
    ({"m.lora_embedding_A": (RANK, 50), "m.lora_embedding_B": (INN, RANK)}, ("embedding", RANK, 50, INN, ())),
    ({**kohya("m"), "m.dora_scale": (1, INN)}, ("dora", RANK, OUT, INN, ())),
    ({**loha("m"), "m.dora_scale": (OUT, 1)}, ("dora", RANK, OUT, INN, ())),
    ({**peft("m"), "m.lora_magnitude_vector": (OUT,)}, ("dora", RANK, OUT, INN, ())),
    ({**peft("m"), "m.magnitude": (OUT,)}, ("dora", RANK, OUT, INN, ())),
    ({"m.oft_blocks": (4, 8, 8), "m.alpha": ()}, ("oft", 0, None, None, ())),
    ({"m.oft_blocks": (2, 4, 8, 8), "m.rescale": (OUT, 1), "m.alpha": ()}, ("boft", 0, None, None, ())),
    ({f"m.{x}.weight": (4, 4) for x in ("a1", "a2", "b1", "b2")}, ("glora", 0, None, None, ())),
    ({"m.weight": (OUT,), "m.on_input": ()}, ("ia3", 0, None, None, ())),
    ({"m.ia3_l": (OUT, 1)}, ("ia3", 0, None, None, ())),
    ({"m.set_weight": (OUT, INN)}, ("set", 0, None, None, ())),
    ({**peft("m"), "m.reshape_weight": (2,)}, ("reshape", RANK, OUT, INN, ())),
    ({**peft("m"), "m.lora_B.bias": (OUT,)}, ("lora", RANK, OUT, INN, ())),
    (
        {**kohya("m"), "m.bias_indices": (2, 7), "m.bias_values": (7,), "m.bias_size": (2,)},
        ("lora", RANK, OUT, INN, ()),
    ),
]


@pytest.mark.parametrize(("shapes", "expected"), KINDS, ids=[f"{e[0]}-{n}" for n, (_, e) in enumerate(KINDS)])
def test_kind_and_size_come_from_the_shapes(shapes: Shapes, expected: tuple[object, ...]) -> None:
    assert size(only(shapes)) == expected


def test_roles_are_spelling_free() -> None:
    assert only(kohya("lora_unet_x")).parts == {
        "down": "lora_unet_x.lora_down.weight",
        "up": "lora_unet_x.lora_up.weight",
        "alpha": "lora_unet_x.alpha",
    }
    assert set(only(peft("unet.x")).parts) == {"down", "up"}


def test_embeddings_are_kept_by_token() -> None:
    shapes = {"bundle_emb.cat.clip_l": (2, 768), "bundle_emb.cat.clip_g": (2, 1280), "<s1>": (768,)}
    layout = parse(shapes, {"<s1>": "<embed>"})
    assert layout.embeddings == {"cat": ("bundle_emb.cat.clip_l", "bundle_emb.cat.clip_g"), "<s1>": ("<s1>",)}


def test_keys_that_belong_to_nothing_are_unknown() -> None:
    shapes = {**kohya("m"), "lonely.alpha": (), "x.weight": (3, 3), "q_norm.scale": (8,), "z.dora_scale": (1, 4)}
    layout = parse(shapes)
    assert len(layout.modules) == 1
    assert set(layout.unknown) == {"lonely.alpha", "x.weight", "q_norm.scale", "z.dora_scale"}


def test_seen_is_what_base_detection_takes() -> None:
    shapes = {**kohya("lora_unet_a", kernel=(3, 3)), **peft("unet.b"), **loha("lora_unet_c"), "unet.d.diff": (7,)}
    assert set(seen(parse(shapes))) == {
        Seen("lora_unet", "a", OUT, INN * 9, 4),
        Seen("unet", "b", OUT, INN, 2),
        Seen("lora_unet", "c", OUT, INN, None),
        Seen("unet", "d", 7, None, None),
    }


def test_scale_one_is_noted_when_nothing_states_it() -> None:
    for stem in ("base_model.model.x", "x", "diffusion_model.x"):
        assert parse(peft(stem)).notes == ("no alpha is stored for 1 modules (x, ...): scale 1 is assumed",)
    assert parse(peft("unet.x")).notes == ()
    assert parse(kohya("lora_unet_x")).notes == ()


def test_scale_is_left_to_an_alpha_tensor() -> None:
    module = only(kohya("lora_unet_x"))
    assert module.scale is None
    assert module.scale_with(1.0) == 1 / RANK
    assert only(peft("unet.x")).scale == 1.0


REFUSED: list[tuple[Shapes, str]] = [
    ({"m.lora_down.weight": (4, 10)}, "m.*'up'"),
    ({"m.lora_up.weight": (12, 4)}, "m.*'down'"),
    (
        pair("m.lora_up.weight", "m.lora_down.weight") | {"m.lora_up.weight": (12, 5)},
        r"m\.lora_up\.weight: expected 4 .*\[12, 5\]",
    ),
    (pair("m.lora_up.weight", "m.lora_down.weight", rank=0), r"m\.lora_\w+\.weight: .*none of them 0"),
    ({"m.lora_up.weight": (12,), "m.lora_down.weight": (4, 10)}, r"m\.lora_up\.weight: expected 2 dimensions"),
    (
        {"m.lora_up.weight": (12, 4, 3, 3), "m.lora_down.weight": (4, 10, 3, 3)},
        r"m\.lora_up\.weight: expected 1 in every",
    ),
    ({**kohya("m"), "m.alpha": (4,)}, r"m\.alpha: expected a single number; found shape \[4\]"),
    ({**kohya("m"), "m.lora_mid.weight": (4, 5, 3, 3)}, r"m\.lora_mid\.weight: expected 4"),
    ({**kohya("m", kernel=(3, 3)), "m.lora_mid.weight": (4, 4, 3, 3)}, r"m\.lora_down\.weight: expected 1 in every"),
    ({**loha("m"), "m.hada_w2_b": (RANK, 9)}, r"m\.hada_w2_b: expected factors of the same size"),
    ({**loha("m"), "m.hada_w1_a": (OUT, 3)}, r"m\.hada_w1_a: expected 4"),
    ({"m.hada_w1_a": (4, 4)}, "'hada_w1_b'"),
    ({**loha("m"), "m.hada_t1": (RANK, RANK, 3, 3)}, "m.hada"),
    ({"m.lokr_w1": (2, 2)}, "'lokr_w2_a'"),
    ({**lokr("m"), "m.lokr_w2": (12, 10)}, "found both"),
    (
        {"m.lokr_w1_a": (4, 2), "m.lokr_w1_b": (2, 4), "m.lokr_w2_a": (4, 3), "m.lokr_w2_b": (3, 4)},
        r"lokr_w2_b: expected the rank",
    ),
    ({**kohya("m"), "m.diff": (12, 10)}, "mixes full and lora"),
    ({**kohya("m"), "m.diff_b": (11,)}, r"m\.diff_b: expected shape \[12\]"),
    ({"m.diff": (12, 0)}, r"m\.diff: .*none of them 0"),
    ({**kohya("m"), "m.bias_values": (7,)}, "bias_indices"),
    ({**peft("m"), "m.lora_A.other.weight": (RANK, INN)}, r"expected one 'down' tensor of its module"),
    ({**peft("m"), "m.lora.up.weight": (OUT, RANK)}, r"expected one 'up' tensor of its module"),
    ({"m.lora_embedding_A": (4, 9), "m.lora_embedding_B": (7, 5)}, r"m\.lora_embedding_B: expected 4"),
]


@pytest.mark.parametrize(("shapes", "message"), REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_contradictions_are_refused_with_the_key(shapes: Shapes, message: str) -> None:
    with pytest.raises(FileFormatError, match=message) as caught:
        parse(shapes)
    assert "\n" not in str(caught.value)


MODULES = [
    lambda n: kohya(f"lora_unet_blocks_{n}"),
    lambda n: kohya(f"lora_te1_layers_{n}", kernel=(3, 3)),
    lambda n: loha(f"lora_unet_loha_{n}"),
    lambda n: lokr(f"diffusion_model.lokr.{n}"),
    lambda n: peft(f"base_model.model.peft.{n}"),
    lambda n: peft(f"unet.base_model.model.peft.{n}"),
    lambda n: {**peft(f"unet.dora.{n}"), f"unet.dora.{n}.lora_magnitude_vector": (OUT,)},
    lambda n: pair(f"unet.{n}.attn1.processor.to_q_lora.up.weight", f"unet.{n}.attn1.processor.to_q_lora.down.weight"),
    lambda n: pair(
        f"text_encoder.{n}.q_proj.lora_linear_layer.up.weight", f"text_encoder.{n}.q_proj.lora_linear_layer.down.weight"
    ),
    lambda n: {f"diffusion_model.norm.{n}.diff": (5,), f"diffusion_model.norm.{n}.diff_b": (5,)},
    lambda n: {f"lora_unet_ia3_{n}.weight": (5,), f"lora_unet_ia3_{n}.on_input": ()},
    lambda n: {f"lora_unet_oft_{n}.oft_blocks": (2, 4, 4), f"lora_unet_oft_{n}.alpha": ()},
    lambda n: {
        f"double_blocks.{n}.img_attn.proj.lora_B.weight": (8, 2),
        f"double_blocks.{n}.img_attn.proj.lora_A.weight": (2, 8),
    },
]
STRAY = st.one_of(
    st.text(min_size=1, max_size=20),
    st.sampled_from(["x.alpha", "conv.weight", "bundle_emb.t.clip_l", "norm.query_norm.scale", "a.b.c.d.e.f"]),
)


@given(
    st.lists(st.sampled_from(range(len(MODULES))), max_size=12),
    st.lists(STRAY, max_size=4, unique=True),
    st.randoms(use_true_random=False),
)
def test_every_key_ends_up_in_exactly_one_place_in_any_order(
    chosen: list[int], stray: list[str], random: object
) -> None:
    shapes: Shapes = {}
    for number, index in enumerate(chosen):
        shapes |= MODULES[index](number)
    shapes |= {key: (3, 3) if key != "x.alpha" else () for key in stray if key not in shapes}
    shuffled = list(shapes)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    layout = parse({key: shapes[key] for key in shuffled})
    placed = [key for module in layout.modules for key in module.parts.values()]
    placed += [key for found in layout.embeddings.values() for key in found] + list(layout.unknown)
    assert sorted(placed) == sorted(shapes)
    assert len(layout.modules) == len(chosen)
    ordered = parse(shapes)
    assert {(module.prefix, module.name, module.kind) for module in layout.modules} == {
        (module.prefix, module.name, module.kind) for module in ordered.modules
    }
    assert layout.format == ordered.format


def test_reading_a_header_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, lorahub.formats.layout; print([m for m in ('torch', 'numpy', 'safetensors') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
