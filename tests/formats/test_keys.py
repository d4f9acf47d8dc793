"""Every key pattern of the formats lorahub reads, one line each."""

from __future__ import annotations

import pytest

from lorahub.formats import keys

CASES = [
    # kohya
    ("lora_unet_down_blocks_0_attn1_to_q.lora_down.weight", "lora_unet", "down_blocks_0_attn1_to_q", "down"),
    (
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
        "lora_te",
        "text_model_encoder_layers_0_mlp_fc1",
        "up",
    ),
    ("lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha", "lora_te1", "text_model_encoder_layers_0_mlp_fc1", "alpha"),
    ("lora_te2_text_projection.lora_mid.weight", "lora_te2", "text_projection", "mid"),
    (
        "lora_te3_encoder_block_0_layer_0_SelfAttention_k.dora_scale",
        "lora_te3",
        "encoder_block_0_layer_0_SelfAttention_k",
        "dora_scale",
    ),
    ("lora_unet_input_blocks_4_1_proj_in.lora_down.weight", "lora_unet", "input_blocks_4_1_proj_in", "down"),
    ("lora_unet__layers_0_attention_to_q.lora_down.weight", "lora_unet_", "layers_0_attention_to_q", "down"),
    (
        "lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight",
        "lora_transformer",
        "transformer_blocks_0_attn_to_q",
        "down",
    ),
    ("lycoris_transformer_blocks_0_attn_to_q.lokr_w1", "lycoris", "transformer_blocks_0_attn_to_q", "lokr_w1"),
    # LyCORIS suffixes
    *(
        (f"lora_unet_conv_in.{role}", "lora_unet", "conv_in", role)
        for role in (
            *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
            *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
            *("diff", "oft_blocks", "rescale", "on_input", "bias_indices", "bias_values", "bias_size"),
            *("set_weight", "reshape_weight"),
        )
    ),
    ("lora_unet_conv_in.diff_b", "lora_unet", "conv_in", "bias"),
    ("lora_unet_conv_norm_out.w_norm", "lora_unet", "conv_norm_out", "diff"),
    ("lora_unet_conv_norm_out.b_norm", "lora_unet", "conv_norm_out", "bias"),
    ("lora_unet_conv_in.a1.weight", "lora_unet", "conv_in", "a1"),
    ("lora_unet_conv_in.bm.weight", "lora_unet", "conv_in", "bm"),
    # PEFT
    ("base_model.model.blocks.0.q.lora_A.weight", "base_model.model", "blocks.0.q", "down"),
    ("base_model.model.unet.mid_block.proj_in.lora_B.weight", "unet", "mid_block.proj_in", "up"),
    ("unet.base_model.model.mid_block.proj_in.lora_A.weight", "unet", "mid_block.proj_in", "down"),
    ("base_model.model.blocks.0.q.lora_A.default.weight", "base_model.model", "blocks.0.q", "down"),
    ("base_model.model.blocks.0.q.lora_B.default_0.bias", "base_model.model", "blocks.0.q", "lora_bias"),
    ("base_model.model.token_embedding.lora_embedding_A", "base_model.model", "token_embedding", "embedding_a"),
    ("base_model.model.token_embedding.lora_embedding_B.default", "base_model.model", "token_embedding", "embedding_b"),
    ("base_model.model.q.lora_magnitude_vector", "base_model.model", "q", "dora_scale"),
    ("base_model.model.q.lora_magnitude_vector.default.weight", "base_model.model", "q", "dora_scale"),
    ("base_model.model.q.hada_w1_a", "base_model.model", "q", "hada_w1_a"),
    ("base_model.model.q.ia3_l", "base_model.model", "q", "ia3_l"),
    ("base_model.model.q.boft_s", "base_model.model", "q", "boft_s"),
    ("base_model.model.q.oft_R.weight", "base_model.model", "q", "oft_blocks"),
    ("transformer_blocks.0.attn.to_q.lora_A.weight", "", "transformer_blocks.0.attn.to_q", "down"),
    # diffusers, new, mixed and old
    ("unet.mid_block.attn1.to_q.lora.down.weight", "unet", "mid_block.attn1.to_q", "down"),
    ("unet.mid_block.attn1.to_out.0.lora.up.weight", "unet", "mid_block.attn1.to_out.0", "up"),
    ("unet.down_blocks.0.ff.net.0.proj.lora_A.weight", "unet", "down_blocks.0.ff.net.0.proj", "down"),
    ("text_encoder.layers.0.q_proj.lora_linear_layer.down.weight", "text_encoder", "layers.0.q_proj", "down"),
    ("text_encoder_2.layers.0.q_proj.lora_A.weight", "text_encoder_2", "layers.0.q_proj", "down"),
    ("transformer_2.blocks.0.attn1.to_q.lora_A.weight", "transformer_2", "blocks.0.attn1.to_q", "down"),
    ("unet.mid_block.attn1.processor.to_q_lora.down.weight", "unet", "mid_block.attn1.to_q", "down"),
    ("mid_block.attn1.processor.to_out_lora.up.weight", "", "mid_block.attn1.to_out.0", "up"),
    ("unet.mid_block.attn1.processor.add_k_proj_lora.up.weight", "unet", "mid_block.attn1.add_k_proj", "up"),
    ("text_encoder.layers.0.self_attn.to_v_lora.down.weight", "text_encoder", "layers.0.self_attn.v_proj", "down"),
    ("text_encoder.layers.0.self_attn.to_out_lora.up.weight", "text_encoder", "layers.0.self_attn.out_proj", "up"),
    # ComfyUI, BFL, XLabs, OMI
    (
        "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight",
        "diffusion_model",
        "double_blocks.0.img_attn.qkv",
        "down",
    ),
    ("model.diffusion_model.blocks.0.self_attn.q.lora_down.weight", "diffusion_model", "blocks.0.self_attn.q", "down"),
    (
        "diffusion_model.double_blocks.0.img_attn.qkv.magnitude",
        "diffusion_model",
        "double_blocks.0.img_attn.qkv",
        "dora_scale",
    ),
    ("diffusion_model.head.head.diff", "diffusion_model", "head.head", "diff"),
    ("diffusion_model.blocks.0.q.lora_A", "diffusion_model", "blocks.0.q", "down"),
    (
        "text_encoders.clip_l.transformer.text_model.q.lora_A.weight",
        "text_encoders.clip_l.transformer",
        "text_model.q",
        "down",
    ),
    ("double_blocks.0.processor.qkv_lora1.down.weight", "", "double_blocks.0.img_attn.qkv", "down"),
    ("double_blocks.3.processor.proj_lora2.up.weight", "", "double_blocks.3.txt_attn.proj", "up"),
    (
        "diffusion_model.single_blocks.3.processor.proj_lora.up.weight",
        "diffusion_model",
        "single_blocks.3.linear2",
        "up",
    ),
    ("single_blocks.3.processor.qkv_lora.up.weight", "", "single_blocks.3.linear1_qkv", "up"),
    (
        "transformer.double_blocks.0.img_attn.qkv.0.lora_down.weight",
        "transformer",
        "double_blocks.0.img_attn.qkv.0",
        "down",
    ),
    ("clip_l.text_projection.lora_up.weight", "clip_l", "text_projection", "up"),
    ("t5.encoder.block.0.layer.0.SelfAttention.k.alpha", "t5", "encoder.block.0.layer.0.SelfAttention.k", "alpha"),
    ("unet._orig_mod.conv_in.lora_A.weight", "unet", "conv_in", "down"),
]


@pytest.mark.parametrize(("key", "prefix", "name", "role"), CASES, ids=[case[0] for case in CASES])
def test_a_key_names_component_module_and_role(key: str, prefix: str, name: str, role: str) -> None:
    read = keys.read(key)
    assert read is not None
    assert (read.place.prefix, read.place.name, read.role) == (prefix, name, role)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "alpha",
        "lora_A.weight",
        "conv_in.weight",
        "to_q.down.weight",
        "x.lora_A.y.z.weight",
        "lora.down.weight",
        "x.lokr_t1",
    ],
)
def test_other_keys_are_not_understood(key: str) -> None:
    assert keys.read(key) is None


def test_patterns_see_the_path_inside_the_wrapped_model() -> None:
    paths = {
        "base_model.model.unet.conv_in": "unet.conv_in",
        "unet.base_model.model.conv_in": "conv_in",
        "base_model.model.conv_in": "conv_in",
        "unet.conv_in": "conv_in",
    }
    assert {stem: keys.locate(stem).path for stem in paths} == paths


def test_bundled_embeddings_are_named_by_their_token() -> None:
    assert keys.bundled_token("bundle_emb.my.token.clip_l") == "my.token"
    assert keys.bundled_token("bundle_emb.token.string_to_param.*") == "token"
    assert keys.bundled_token("unet.conv_in.lora_A.weight") is None
