"""The card: what the Hub reads in it, what people read in it, and that nothing in it comes to life."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData
from markdown_it import MarkdownIt
from safetensors.torch import save_file

from lorahub.sync import card, push
from lorahub.sync.document import CheckNote, Document, FileNote, ParentNote, Said
from lorahub.workspace.opening import Catalogue
from registry import RunSettings
from registry.records import Recipe
from tests.hub.server import Hub
from tests.sync.conftest import WEIGHTS

SHA = "ab" * 32
FILE = FileNote(
    path=WEIGHTS, sha256=SHA, data_sha256=SHA, fingerprint=None, size=1_000_000, format="kohya", dtype="F16",
    ranks={"unet": (8,)}, layers={"unet": 12}, parameters=10, scale=1.0,
)  # fmt: skip
HOSTILE = "<script>alert(1)</script> `x` ```\n# h [a](javascript:b) | \x1b[31m"


def document(**said: object) -> Document:
    return Document(schema=1, name="papercut", file=FILE, said=Said(**said))  # type: ignore[arg-type]


def data(described: Document) -> ModelCardData:
    return ModelCard(card.write(described, "user/style").decode()).data


def test_what_the_hub_finds_it_by() -> None:
    found = data(document(base="sdxl", licence="CC-BY-4.0", trigger_words=("cut", "paper"), tags=("warm",)))
    assert found.base_model == "stabilityai/stable-diffusion-xl-base-1.0"
    assert (found.base_model_relation, found.library_name, found.pipeline_tag) == (
        "adapter",
        "diffusers",
        "text-to-image",
    )
    assert {"lora", "template:sd-lora", "text-to-image", "stable-diffusion-xl", "warm"} <= set(found.tags or ())
    assert (found.license, found.instance_prompt) == ("cc-by-4.0", "cut, paper")


@pytest.mark.parametrize(
    ("licence", "stated", "name"),
    [(None, None, None), ("MIT", "mit", None), ("My Licence v2!", "other", "my-licence-v2"), ("???", "other", None)],
)
def test_licences(licence: str | None, stated: str | None, name: str | None) -> None:
    found = data(document(licence=licence))
    assert (found.license, found.license_name) == (stated, name)


def test_bases_that_are_not_listed_or_make_videos() -> None:
    assert data(document(base="unlisted-dotted")).base_model is None
    assert data(document()).base_model is None
    assert data(document(base="wan-14b")).pipeline_tag == "text-to-video"


def test_how_to_run_it() -> None:
    run = RunSettings(
        scheduler="LCMScheduler", scheduler_args={"timestep_spacing": "trailing"}, steps=4, steps_min=2, steps_max=8,
        guidance_min=1.0, guidance_max=2.0, lora_scale=0.8,
    )  # fmt: skip
    text = card.write(document(base="sdxl", run=run, trigger_words=("cut",)), "user/style").decode()
    code = text.partition("```python\n")[2].partition("```")[0]
    compile(code, "card", "exec")
    assert "LCMScheduler.from_config(pipeline.scheduler.config, **{'timestep_spacing': 'trailing'})" in code
    assert "load_lora_weights('user/style', adapter_name=\"lora\")" in code
    assert 'set_adapters(["lora"], [0.8])' in code
    assert "pipeline('cut, a cat', num_inference_steps=4, guidance_scale=1.0)" in code
    assert "Run it with steps 2 to 8 and guidance scale 1 to 2." in text


def test_where_it_comes_from_and_what_was_found() -> None:
    described = Document(
        schema=1,
        name="fast",
        file=FILE,
        said=Said(),
        parents=(
            ParentNote(name="style", weight=0.8, sha256=SHA, repo="user/style", path=WEIGHTS),
            ParentNote(name="user/lcm", weight=1.0, sha256=SHA),
            ParentNote(name="local", weight=-0.5, sha256=SHA),
        ),
        recipe=Recipe(method="linear", expression="0.8*style + lcm - 0.5*local", tool="lorahub 0.1.0"),
        validations=(CheckNote(check="clip", severity="ok", message="0.31"),),
    )
    text = card.write(described, "user/fast").decode()
    assert "- 0.8 x [style](https://huggingface.co/user/style)" in text
    assert "- 1 x [user/lcm](https://huggingface.co/user/lcm)" in text
    assert "- -0.5 x `local`" in text
    assert "lorahub pull user/fast --rebuild" in text
    assert "| clip | ok | 0.31 |" in text


def test_words_of_strangers_stay_words() -> None:
    run = RunSettings(scheduler="__import__('os').system('x')", scheduler_args={HOSTILE: HOSTILE})
    described = Document(
        schema=1,
        name=HOSTILE,
        file=FILE,
        said=Said(licence=HOSTILE, trigger_words=(HOSTILE,), run=run, tags=("a: b", "- c")),
        validations=(CheckNote(check=HOSTILE, severity="ok", message=HOSTILE),),
    )
    text = card.write(described, "user/style").decode()
    head, body = text[4:].split("\n---\n", 1)
    assert yaml.safe_load(head)["instance_prompt"] == HOSTILE
    assert "\x1b" not in text
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    inline = [child for token in tokens for child in token.children or ()]
    assert {token.type for token in (*tokens, *inline)}.isdisjoint({"html_inline", "link_open", "image"})
    assert [token.content for token in tokens if token.type == "html_block"] == [body[body.rindex("<!--") :]]
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings[1:] == ["Trigger words", "Use it", "Validation", "File"]
    (code,) = [token.content for token in tokens if token.type == "fence"]
    assert "system" not in code
    compile(code, "card", "exec")


def test_an_edited_card_is_told_from_a_generated_one() -> None:
    text = card.write(document(), "user/style")
    assert card.is_generated(text)
    assert not card.is_generated(text.replace(b"# papercut", b"# Papercut"))
    assert not card.is_generated(text + b"more\n")
    assert not card.is_generated(b"# by hand\n")
    assert not card.is_generated(b"\xff\x00")
    assert card.write(document(), "user/style") == text


def test_a_pipeline_loads_what_was_pushed_by_the_name_of_the_repository(
    hub: Hub, mine: Catalogue, tmp_path: Path
) -> None:
    from tests.files import tiny

    pipe = tiny.sd15()
    torch.manual_seed(3)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
    out, columns = pipe.unet.get_submodule(name).weight.shape
    up, down = torch.randn(out, 2), torch.randn(2, columns)
    tensors = {f"unet.{name}.lora_B.weight": up, f"unet.{name}.lora_A.weight": down}
    save_file(tensors, tmp_path / "tiny.safetensors")
    mine.add([tmp_path / "tiny.safetensors"], weights=False)
    push(mine, "tiny", to="user/tiny")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        pipe.load_lora_weights("user/tiny", adapter_name="lora")
    layer = pipe.unet.get_submodule(name)
    assert torch.equal(layer.lora_A["lora"].weight, down)
    assert torch.equal(layer.lora_B["lora"].weight, up)
