"""Files are told apart by their layers; what the layers leave open is said to be open."""

from __future__ import annotations

import time

import pytest

from lorahub.bases import Detection, Seen, detect, get, names, sizes

from .headers import attention, real, seen

CLIP_L = ("sd15", "sdxl", "ssd-1b", "sd3", "sd35-medium", "sd35-large", "flux1")


def said(detection: Detection, *texts: str) -> bool:
    """Whether each text stands in some sentence of the evidence."""
    return all(any(text in sentence for sentence in detection.evidence) for text in texts)


@pytest.mark.parametrize("name", names())
def test_a_full_denoiser_is_its_base_in_every_spelling(name: str) -> None:
    denoiser = next(iter(get(name).components.values()))
    prefix = denoiser.kohya_prefix
    for dialect in (None, *denoiser.aliases):
        for flat in (False, True):
            detection = detect(seen(name, denoiser.name, prefix, dialect=dialect, flat=flat), {})
            assert detection.base == name
            assert name in detection.candidates
            assert detection.confidence >= 0.9
            assert said(detection, f"exist in {name} with these shapes")


@pytest.mark.parametrize("name", names())
def test_every_module_begins_as_its_base_says(name: str) -> None:
    """A base is compared only with files that have such a name."""
    spelled = {key for tables in sizes.tables(name).values() for table in tables for key in table.sizes}
    assert spelled
    assert all(key.startswith(sizes.beginnings(name)) for key in spelled)


def test_sdxl_attention_in_kohya_and_diffusers_names_at_once() -> None:
    both = seen("sdxl", "unet", "lora_unet", attention, dialect="sgm", flat=True)[:200]
    both += seen("sdxl", "unet", "lora_unet", attention, flat=True)[200:]
    detection = detect(both, {})
    assert (detection.base, detection.candidates) == ("sdxl", ("sdxl",))
    assert said(detection, "all 560 layers exist in sdxl", "cross-attention input 2048: only sdxl, ssd-1b")


def test_ssd_1b_fills_itself_and_only_part_of_sdxl() -> None:
    detection = detect(seen("ssd-1b", "unet", "unet", attention), {})
    assert detection.base == "ssd-1b"
    assert detection.candidates == ("sdxl", "ssd-1b")
    assert detection.confidence == 0.9
    assert said(detection, "of the layers of its kinds the file fills 272 of 480 in sdxl, 272 of 272 in ssd-1b")


def test_sdxl_sliders_with_block_indices_0_and_1_are_not_sd15() -> None:
    def first_two(module: str) -> bool:
        return attention(module) and any(f"transformer_blocks.{i}." in module for i in (0, 1))

    detection = detect(seen("sdxl", "unet", "lora_unet", first_two, flat=True), {})
    assert detection.base == "sdxl"
    assert said(detection, "not sd15: ", "640 x 2048 in the file, 640 x 768 there")


def test_a_slider_both_sdxl_and_ssd_1b_can_hold_is_ambiguous() -> None:
    slider = seen("sdxl", "unet", "lora_unet", lambda m: attention(m) and m.startswith("down_blocks.1."), flat=True)
    detection = detect(slider, {})
    assert (detection.base, detection.confidence) == (None, 0.0)
    assert detection.candidates == ("sdxl", "ssd-1b")
    assert said(detection, "keys and shapes leave sdxl, ssd-1b: ambiguous")

    told = detect(slider, {"ss_base_model_version": "sdxl_base_v1-0"})
    assert (told.base, told.confidence, told.declared) == ("sdxl", 0.7, "sdxl")
    assert said(told, "ambiguous", "metadata (ss_base_model_version: 'sdxl_base_v1-0') says sdxl")


def test_attn1_alone_does_not_tell_sd1_from_sd2() -> None:
    layers = seen("sd2", "unet", "unet", lambda module: "attn1.to_" in module)
    assert detect(layers, {}).candidates == ("sd15", "sd2")
    assert detect(layers, {}).base is None
    assert detect(layers, {"ss_base_model_version": "sd_v2_768_v"}).base == "sd2"
    # What the metadata names must be among what the shapes allow.
    lied = detect(layers, {"ss_base_model_version": "sdxl_base_v1-0"})
    assert lied.base is None
    assert said(lied, "says sdxl, but keys and shapes say sd15 or sd2: metadata is not believed")


@pytest.mark.parametrize(("dims", "base"), [(4, "sd15"), (2, "sd2"), (None, None)])
def test_the_kernel_of_proj_in_tells_sd1_from_sd2(dims: int | None, base: str | None) -> None:
    layers = seen("sd2", "unet", "unet", lambda module: "attn1.to_" in module)
    layers.append(Seen("unet", "mid_block.attentions.0.proj_in", 1280, 1280, dims))
    assert detect(layers, {}).base == base


def test_metadata_that_lies_is_not_believed() -> None:
    layers = seen("flux1", "transformer", "lora_unet", dialect="bfl", flat=True)
    detection = detect(layers, {"ss_base_model_version": "sd_1.5"})
    assert (detection.base, detection.declared) == ("flux1", "sd15")
    assert said(detection, "says sd15, but keys and shapes say flux1: metadata is not believed")


def test_text_encoder_files() -> None:
    clip_l = detect(seen("sd15", "text_encoder", "lora_te", flat=True), {})
    assert (clip_l.base, clip_l.candidates) == ("sd15", ("sd15",))
    assert detect(seen("sd2", "text_encoder", "lora_te", flat=True), {}).base == "sd2"

    shared = detect(seen("sdxl", "text_encoder", "lora_te1", flat=True), {})
    assert (shared.base, shared.candidates) == (None, CLIP_L)
    assert (
        detect(seen("sdxl", "text_encoder", "lora_te1", flat=True), {"modelspec.architecture": "flux-1-dev"}).base
        == "flux1"
    )

    t5 = detect(seen("flux1", "text_encoder_2", "lora_te2", flat=True), {})
    assert t5.base == "flux1"
    shared_t5 = detect(seen("flux1", "text_encoder_2", "lora_te3", flat=True), {})
    assert (shared_t5.base, shared_t5.candidates) == (None, ("sd3", "sd35-medium", "sd35-large", "flux1"))


def test_a_text_encoder_beside_attn1_decides() -> None:
    layers = seen("sd2", "unet", "lora_unet", lambda m: "attn1.to_" in m, flat=True)
    assert detect(layers + seen("sd2", "text_encoder", "lora_te", flat=True), {}).base == "sd2"


def test_an_empty_file_is_no_base() -> None:
    detection = detect([], {"ss_base_model_version": "sd_v1"})
    assert (detection.base, detection.candidates, detection.confidence) == (None, (), 0.0)
    assert detection.declared == "sd15"
    assert said(detection, "the file has no adapter layers")


def test_unlisted_bases_are_not_guessed() -> None:
    flux2 = [Seen("diffusion_model", f"double_blocks.{i}.img_attn.qkv", 18432, 6144) for i in range(8)]
    detection = detect(flux2, {"ss_base_model_version": "flux1"})
    assert (detection.base, detection.candidates, detection.declared) == (None, (), "flux1")
    assert said(detection, "nearest, flux1, has none of the layers", "18432 x 6144 in the file, 9216 x 3072 there")
    assert said(detection, "but the layers do not fit it")

    llm = [Seen("base_model.model", f"model.layers.{i}.self_attn.q_proj", 4096, 4096) for i in range(32)]
    assert said(detect(llm, {}), "no listed base has any of these layers")


def test_a_sparse_file_may_be_of_an_unlisted_relative() -> None:
    """The double blocks of FLUX.2 Klein 4B have the names and sizes of FLUX.1."""
    klein = [Seen("diffusion_model", f"double_blocks.{i}.img_attn.proj", 3072, 3072) for i in range(5)]
    detection = detect(klein, {})
    assert (detection.base, detection.confidence) == ("flux1", 0.8)
    assert said(detection, "fills only 5 of the 19 layers of its kinds in flux1: an unlisted base")
    assert detect(klein, {"ss_base_model_version": "flux1"}).confidence == 0.99


def test_flux_double_blocks_are_not_qwen_image() -> None:
    detection = detect(
        seen("flux1", "transformer", "transformer", lambda m: attention(m) and m.startswith("transformer_blocks")), {}
    )
    assert (detection.base, detection.candidates) == ("flux1", ("flux1", "qwen-image"))


def test_attention_of_sd3_fits_sd35_medium_too() -> None:
    layers = seen("sd3", "transformer", "transformer", attention)
    assert detect(layers, {}).candidates == ("sd3", "sd35-medium")
    assert detect(seen("sd35-medium", "transformer", "transformer", attention), {}).candidates == ("sd35-medium",)
    # `sd3.5` could be Large, which the shapes exclude.
    assert detect(layers, {"ss_base_model_version": "sd3.5"}).base == "sd35-medium"


def test_a_few_misfits_lower_the_confidence() -> None:
    layers = seen("sdxl", "unet", "unet", attention)
    detection = detect([*layers, *(Seen("unet", f"extra.{i}", 1, 1) for i in range(5))], {})
    assert (detection.base, detection.confidence) == ("sdxl", 0.6)
    assert said(
        detection, "560 of 565 layers exist in sdxl with these shapes; 5 do not, such as unet.extra.0 (no such layer)"
    )
    many = detect([*layers, *(Seen("unet", f"extra.{i}", 1, 1) for i in range(60))], {})
    assert (many.base, many.candidates) == (None, ())
    assert said(many, "nearest, sdxl, has 560 of 620 of the layers")


@pytest.mark.parametrize(
    ("base", "component", "module", "inputs"),
    [
        ("flux1", "transformer", "x_embedder", 128),
        ("flux1", "transformer", "x_embedder", 384),
        ("sd15", "unet", "conv_in", 81),
        ("wan-14b", "transformer", "patch_embedding", 144),
    ],
)
def test_variants_with_extra_input_channels(base: str, component: str, module: str, inputs: int) -> None:
    layers = seen(base, component, component, lambda m: m != module)
    layers.append(Seen(component, module, get(base).components[component].layers[module][0], inputs))
    detection = detect(layers, {})
    assert detection.base == base
    assert said(detection, f"takes {inputs} inputs", "a variant with extra input channels")
    # No other layer may differ, and the input may not be narrower.
    layers[-1] = Seen(component, module, 1, inputs)
    assert said(detect(layers, {}), "1 do not")


def test_sizes_may_be_unknown_or_those_of_a_product() -> None:
    """A parser gives factorised LoKr as the product of its factors, and may not know a size at all."""
    layers = seen("sdxl", "unet", "lora_unet", dialect="sgm", flat=True)
    assert detect([Seen(layer.prefix, layer.module, layer.out, None) for layer in layers], {}).base == "sdxl"
    assert detect([Seen(layer.prefix, layer.module, None, None) for layer in layers], {}).base == "sdxl"


def test_norms_and_embeddings_are_layers_too() -> None:
    unet = get("sd15").components["unet"]
    norms = [Seen("lora_unet", module.replace(".", "_"), length, None) for module, length in unet.norms.items()]
    assert detect(seen("sd15", "unet", "lora_unet", flat=True) + norms, {}).base == "sd15"
    for rows, columns in ((49408, 768), (768, 49408)):
        token = Seen("text_encoder", "text_model.embeddings.token_embedding", rows, columns)
        assert detect([token], {}).candidates == CLIP_L


def test_both_denoisers_of_wan_22() -> None:
    layers = seen("wan-14b", "transformer", "transformer") + seen("wan-14b", "transformer_2", "transformer_2")
    assert detect(layers, {"ss_base_model_version": "wan2.2"}).base == "wan-14b"


@pytest.mark.parametrize(
    ("file", "base", "layers"),
    [
        ("sd15-disney.kohya.safetensors", "sd15", 192),
        ("sd2-disney.kohya.safetensors", "sd2", 128),
        ("sd2-popart.kohya.safetensors", "sd2", 128),
        ("sd2-popart.diffusers.safetensors", "sd2", 128),
    ],
)
def test_real_files(file: str, base: str, layers: int) -> None:
    found, metadata = real(file)
    detection = detect(found, metadata)
    assert len(found) == layers
    assert (detection.base, detection.candidates, detection.confidence) == (base, (base,), 0.99)


def test_a_large_file_is_detected_at_once() -> None:
    layers = seen("sdxl", "unet", "lora_unet", attention, flat=True)
    detect(layers, {})
    start = time.perf_counter()
    detect(layers, {})
    # 4 ms on the machine this was written on; the bound only catches work that grows with the tables.
    assert time.perf_counter() - start < 0.2
