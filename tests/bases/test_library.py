"""The tables hold the facts known of each model, and every spelling of its name finds it."""

from __future__ import annotations

import subprocess
import sys
from math import prod

import pytest

from lorahub import bases
from lorahub.bases import Component, Span, flatten
from lorahub.errors import NotFoundError, UsageError

# What latent-consistency adapters train: the target modules of the LCM-LoRA training scripts.
LCM_TARGETS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "conv1",
    "conv2",
    "conv_shortcut",
    "downsamplers.0.conv",
    "upsamplers.0.conv",
    "time_emb_proj",
)


def components() -> list[tuple[str, Component]]:
    return [(name, component) for name in bases.names() for component in bases.get(name).components.values()]


def ids(value: object) -> str:
    return value.name if isinstance(value, Component) else str(value)


def test_thirteen_bases_are_listed() -> None:
    assert bases.names() == (
        *("sd15", "sd2", "sdxl", "ssd-1b", "sd3", "sd35-medium", "sd35-large"),
        *("flux1", "qwen-image", "z-image", "wan-14b", "wan-1.3b", "wan22-5b"),
    )
    assert [bases.get(name).name for name in bases.names()] == list(bases.names())


@pytest.mark.parametrize(
    ("base", "layers", "parameters"),
    [("sd15", 278, 67_252_224), ("sdxl", 788, 196_751_360), ("ssd-1b", 423, 104_902_656)],
)
def test_lcm_lora_has_its_published_size(base: str, layers: int, parameters: int) -> None:
    targets = [
        shape
        for module, shape in bases.get(base).components["unet"].layers.items()
        if any(module == target or module.endswith(f".{target}") for target in LCM_TARGETS)
    ]
    assert len(targets) == layers
    assert sum(64 * (shape[0] + prod(shape[1:])) for shape in targets) == parameters


def test_flux_has_19_double_and_38_single_blocks() -> None:
    layers = bases.get("flux1").components["transformer"].layers
    assert {int(m.split(".")[1]) for m in layers if m.startswith("transformer_blocks.")} == set(range(19))
    assert {int(m.split(".")[1]) for m in layers if m.startswith("single_transformer_blocks.")} == set(range(38))


def test_fused_and_swapped_layers() -> None:
    flux = bases.get("flux1")
    single = "transformer.single_transformer_blocks.3"
    assert flux.find("lora_unet", "single_blocks_3_linear1") == (
        *(Span(f"{single}.attn.to_{x}", 0, 3072) for x in "qkv"),
        Span(f"{single}.proj_mlp", 0, 12288),
    )
    swapped = (Span("transformer.norm_out.linear", 3072, 6144), Span("transformer.norm_out.linear", 0, 3072))
    assert flux.find("diffusion_model", "final_layer.adaLN_modulation.1") == swapped
    sd3 = bases.get("sd3")
    last, before = (sd3.find("lora_unet", f"joint_blocks_{i}_context_block_adaLN_modulation_1") for i in (23, 22))
    layer = "transformer.transformer_blocks.23.norm1_context.linear"
    assert last == (Span(layer, 1536, 3072), Span(layer, 0, 1536))
    assert before == (Span("transformer.transformer_blocks.22.norm1_context.linear", 0, 9216),)


@pytest.mark.parametrize(
    ("base", "prefix", "module", "layer"),
    [
        ("sd15", "lora_te", "text_model_encoder_layers_0_mlp_fc1", "text_encoder.text_model.encoder.layers.0.mlp.fc1"),
        ("sd15", "text_encoder", "encoder.layers.0.mlp.fc1", "text_encoder.text_model.encoder.layers.0.mlp.fc1"),
        ("sdxl", "lora_te2", "text_projection", "text_encoder_2.text_projection"),
        ("sdxl", "lora_unet", "middle_block_1_proj_in", "unet.mid_block.attentions.0.proj_in"),
        ("sdxl", "lora_unet", "down_blocks_1_resnets_0_conv1", "unet.down_blocks.1.resnets.0.conv1"),
        ("sdxl", "", "output_blocks.2.2.conv", "unet.up_blocks.0.upsamplers.0.conv"),
        ("sd15", "", "output_blocks.2.1.conv", "unet.up_blocks.0.upsamplers.0.conv"),
        ("flux1", "lora_te3", "encoder_block_1_layer_0_SelfAttention_q", "text_encoder_2.encoder.block.1.layer.0.SelfAttention.q"),
        ("flux1", "lora_te2", "encoder_block_1_layer_0_SelfAttention_q", "text_encoder_2.encoder.block.1.layer.0.SelfAttention.q"),
        ("sd3", "text_encoders.clip_g.transformer", "text_projection", "text_encoder_2.text_projection"),
        ("z-image", "lora_unet_", "layers_0_feed_forward_w1", "transformer.layers.0.feed_forward.w1"),
        ("wan-14b", "diffusion_model", "blocks.0.norm3", "transformer.blocks.0.norm2"),
        ("wan-14b", "transformer_2", "blocks.0.attn2.add_k_proj", "transformer_2.blocks.0.attn2.add_k_proj"),
    ],
)  # fmt: skip
def test_find_knows_the_spellings_of_files(base: str, prefix: str, module: str, layer: str) -> None:
    spans = bases.get(base).find(prefix, module)
    assert spans is not None
    assert [span.layer for span in spans] == [layer]
    assert bases.get(base).find(prefix, "no.such.module") is None


@pytest.mark.parametrize(("name", "component"), components(), ids=ids)
def test_no_flattened_name_has_two_meanings(name: str, component: Component) -> None:
    meanings: dict[str, object] = {}
    rows = {m: shape[0] for m, shape in {**component.layers, **component.embeddings}.items()} | dict(component.norms)
    spelled = [(module, (Span(module, 0, length),)) for module, length in rows.items()]
    spelled += [item for dialect in component.aliases.values() for item in dialect.items()]
    for module, spans in spelled:
        assert meanings.setdefault(flatten(module), spans) == spans, module


@pytest.mark.parametrize(("name", "component"), components(), ids=ids)
def test_every_dialect_covers_its_layers_once(name: str, component: Component) -> None:
    """No row of a layer is named by two aliases of one dialect, and an alias that names part of a layer names it all."""
    rows = {m: shape[0] for m, shape in {**component.layers, **component.embeddings}.items()} | dict(component.norms)
    for dialect in component.aliases.values():
        covered: dict[str, int] = {}
        for spans in dialect.values():
            for span in spans:
                covered[span.layer] = covered.get(span.layer, 0) + span.stop - span.start
        assert all(count == rows[layer] for layer, count in covered.items())
    assert component.kohya_dialect in {"diffusers", *component.aliases}


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("sdxl-1.0", "sdxl"),
        ("SDXL 1.0", "sdxl"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl"),
        ("sd1.5", "sd15"),
        ("SD 1.5", "sd15"),
        ("runwayml/stable-diffusion-v1-5", "sd15"),
        ("sd-2.1", "sd2"),
        ("flux.1-dev", "flux1"),
        ("black-forest-labs/FLUX.1-dev", "flux1"),
        ("sd3.5-large", "sd35-large"),
        ("Wan2.1-1.3B", "wan-1.3b"),
        ("SSD_1B", "ssd-1b"),
    ],
)
def test_get_knows_other_spellings(spelling: str, name: str) -> None:
    assert bases.get(spelling) is bases.get(name)


def test_no_spelling_means_two_bases() -> None:
    spellings = [s for name, others in bases.library._also_known_as().items() for s in (name, *others)]
    plain = [(bases.library._plain(s), bases.library.canonical_name(s)) for s in spellings]
    owners = {
        name: {bases.library._plain(s) for s in (name, *others)}
        for name, others in bases.library._also_known_as().items()
    }
    assert all(sum(p in owned for owned in owners.values()) == 1 for p, _ in plain)


def test_unknown_base_is_an_error_that_helps() -> None:
    with pytest.raises(NotFoundError, match=r"'sdlx'.*did you mean sdxl\?.*known bases are sd15, sd2, sdxl"):
        bases.get("sdlx")
    with pytest.raises(NotFoundError, match=r"'' *: known bases"):
        bases.get("")


def test_kohya_prefixes() -> None:
    prefixes = {name: [c.kohya_prefix for c in bases.get(name).components.values()] for name in ("sd15", "sdxl", "sd3")}
    assert prefixes == {
        "sd15": ["lora_unet", "lora_te"],
        "sdxl": ["lora_unet", "lora_te1", "lora_te2"],
        "sd3": ["lora_unet", "lora_te1", "lora_te2", "lora_te3"],
    }
    assert [c.kohya_prefix for c in bases.get("flux1").components.values()] == ["lora_unet", "lora_te1", "lora_te3"]
    with pytest.raises(UsageError, match="transformer_2"):
        bases.get("wan-14b").components["transformer_2"].kohya_prefix  # noqa: B018


def test_reading_one_base_reads_no_other_and_needs_no_torch() -> None:
    code = (
        "import sys; from lorahub import bases; from lorahub.bases import library; bases.get('sdxl'); bases.detect([], {});"
        "assert library._read.cache_info().currsize == 1;"
        "bases.detect([bases.Seen('lora_unet', 'input_blocks_4_1_proj_in', 640, 640)], {'ss_base_model_version': 'xl'});"
        "assert library._read.cache_info().currsize == 4;"  # UNets: the others have no module that begins so
        "print([m for m in ('torch', 'diffusers', 'transformers', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
