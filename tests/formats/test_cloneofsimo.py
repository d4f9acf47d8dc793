"""cloneofsimo files: numbers become modules, in the order of the classes that the metadata list."""

from __future__ import annotations

import json

import pytest

from lorahub.bases import get
from lorahub.errors import FileFormatError
from lorahub.formats.layout import Layout, parse

ATTENTION = ["CrossAttention"]


def file(counts: dict[str, int], **classes: list[str]) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    shapes: dict[str, tuple[int, ...]] = {"<s1>": (768,)}
    for component, count in counts.items():
        for number in range(count):
            shapes |= {f"{component}:{number}:up": (320, 4), f"{component}:{number}:down": (4, 320)}
    return shapes, {"<s1>": "<embed>"} | {component: json.dumps(names) for component, names in classes.items()}


def load(counts: dict[str, int], **classes: list[str]) -> Layout:
    return parse(*file(counts, **classes))


def test_the_classes_of_the_metadata_select_and_order_the_modules() -> None:
    layout = load({"unet": 144, "text_encoder": 48}, unet=["GEGLU", "CrossAttention"], text_encoder=["CLIPAttention"])
    assert layout.format == "cloneofsimo"
    assert layout.embeddings == {"<s1>": ("<s1>",)}
    names = [module.name for module in layout.modules if module.prefix == "unet"]
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    assert names[:5] == [
        *(f"{block}.attn1.{x}" for x in ("to_q", "to_k", "to_v", "to_out.0")),
        f"{block}.ff.net.0.proj",
    ]
    assert names[-1] == "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
    assert [module.scale for module in layout.modules] == [1.0] * 192


@pytest.mark.parametrize("classes", [["CrossAttention"], ["Attention"]])
def test_attention_alone(classes: list[str]) -> None:
    names = [module.name for module in load({"unet": 128}, unet=classes).modules]
    assert len(names) == 128
    assert not any(".ff." in name for name in names)


def test_every_module_is_a_layer_of_sd15() -> None:
    layout = load(
        {"unet": 144, "text_encoder": 72}, unet=["CrossAttention", "GEGLU"], text_encoder=["CLIPAttention", "CLIPMLP"]
    )
    base = get("sd15")
    assert all(base.find(module.prefix, module.name) for module in layout.modules)


@pytest.mark.parametrize(
    ("counts", "classes", "message"),
    [
        ({"unet": 100}, {"unet": ATTENTION}, "expected modules 0 to 127"),
        ({"unet": 128}, {}, "metadata unet: expected a JSON list"),
        ({"unet": 128}, {"unet": ["ResnetBlock2D"]}, "expected classes among"),
        ({"unet": 128}, {"unet": []}, "expected classes among"),
        ({"vae": 2}, {"vae": ATTENTION}, "found vae"),
    ],
)
def test_files_that_cannot_be_placed_are_refused(
    counts: dict[str, int], classes: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(FileFormatError, match=message):
        load(counts, **classes)


def test_a_missing_half_is_refused() -> None:
    shapes, metadata = file({"unet": 128}, unet=ATTENTION)
    del shapes["unet:3:up"]
    with pytest.raises(FileFormatError, match=r"attn1\.to_out\.0.*'up'"):
        parse(shapes, metadata)
