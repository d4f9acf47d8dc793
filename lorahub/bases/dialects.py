"""What other programs call the modules of a model: one function or one table of rules for each dialect.

The rule: a dialect names whole modules of the original implementation. Where that module is several diffusers modules
stacked (`attn.qkv`), or holds the same rows in another order, the alias lists the spans of rows, top to bottom. A rule
yields aliases only for modules the scanned model has, so one table serves every size of a family.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

Shapes = Mapping[str, tuple[int, ...]]
"""Weight shape of every module of a component, normalisations (length,) included."""
Meaning = str | list[list[str | int]]
"""The module an alias stands for, or the spans [module, start, stop] it is stacked of."""
Rules = Mapping[str, tuple[str, ...]]
"""alias -> the modules it is stacked of; `{}` is the index of the block."""


def aliases(dialect: str, shapes: Shapes) -> dict[str, Meaning]:
    """Every module name of the dialect that is not already the canonical one."""
    return {alias: meaning for alias, meaning in DIALECTS[dialect](shapes) if alias != meaning}


def _by_rules(rules: Rules) -> Callable[[Shapes], Iterator[tuple[str, Meaning]]]:
    def apply(shapes: Shapes) -> Iterator[tuple[str, Meaning]]:
        last = max((int(number) for name in shapes for number in re.findall(r"\.(\d+)\.", name)), default=0)
        for alias, modules in rules.items():
            for number in range(last + 1) if "{}" in alias else (0,):
                names = [module.replace("{}", str(number)) for module in modules]
                if all(name in shapes for name in names):
                    yield alias.replace("{}", str(number)), _meaning(names, shapes)

    return apply


def _meaning(names: list[str], shapes: Shapes) -> Meaning:
    rows = shapes[names[0]][0]
    if len(names) > 1:
        return [[name, 0, shapes[name][0]] for name in names]
    if names[0].endswith(("norm_out.linear", "norm1_context.linear")) and rows == 2 * shapes[names[0]][1]:
        # AdaLayerNormContinuous: the originals write shift above scale, diffusers scale above shift. A modulation of
        # six rows per channel (every block but SD3's last) keeps the order.
        return [[names[0], rows // 2, rows], [names[0], 0, rows // 2]]
    return names[0]


def _sgm(shapes: Shapes) -> Iterator[tuple[str, Meaning]]:
    """Names of the UNet of CompVis and Stability (`ldm`, `sgm`), where all levels are one list of blocks."""
    for name in shapes:
        alias = _sgm_name(name, shapes)
        if alias is not None:
            yield alias, name


_SGM_LAYERS_PER_BLOCK = 2
_SGM_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_SGM_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_MODULE = re.compile(
    r"(down_blocks|mid_block|up_blocks)(?:\.(\d+))?\.(resnets|attentions|\w+samplers)\.(\d+)\.(.+)"
)


def _sgm_name(name: str, shapes: Shapes) -> str | None:
    match = _UNET_MODULE.fullmatch(name)
    if match is None:
        return _SGM_OUTSIDE.get(name)
    side, level, kind, index, tail = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    inner = _SGM_RESNET[tail] if kind == "resnets" else tail
    stride = _SGM_LAYERS_PER_BLOCK + 1
    if side == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * index}.{inner}"
    if side == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * stride}.0.op"
        return f"input_blocks.{level * stride + index + 1}.{1 if kind == 'attentions' else 0}.{inner}"
    if kind == "upsamplers":
        # The upsampler follows the last resnet of its level, and the attention where the level has one.
        attends = any(other.startswith(f"up_blocks.{level}.attentions.") for other in shapes)
        return f"output_blocks.{level * stride + _SGM_LAYERS_PER_BLOCK}.{2 if attends else 1}.conv"
    return f"output_blocks.{level * stride + index}.{1 if kind == 'attentions' else 0}.{inner}"


def _transformers(shapes: Shapes) -> Iterator[tuple[str, Meaning]]:
    """transformers 5 lists the modules of CLIPTextModel without the `text_model.` that every LoRA file writes."""
    for name in shapes:
        if name.startswith("text_model."):
            yield name.removeprefix("text_model."), name


_BFL: Rules = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "double_blocks.{}.img_mod.lin": ("transformer_blocks.{}.norm1.linear",),
    "double_blocks.{}.img_attn.qkv": tuple(f"transformer_blocks.{{}}.attn.to_{x}" for x in "qkv"),
    "double_blocks.{}.img_attn.norm.query_norm": ("transformer_blocks.{}.attn.norm_q",),
    "double_blocks.{}.img_attn.norm.key_norm": ("transformer_blocks.{}.attn.norm_k",),
    "double_blocks.{}.img_attn.proj": ("transformer_blocks.{}.attn.to_out.0",),
    "double_blocks.{}.img_mlp.0": ("transformer_blocks.{}.ff.net.0.proj",),
    "double_blocks.{}.img_mlp.2": ("transformer_blocks.{}.ff.net.2",),
    "double_blocks.{}.txt_mod.lin": ("transformer_blocks.{}.norm1_context.linear",),
    "double_blocks.{}.txt_attn.qkv": tuple(f"transformer_blocks.{{}}.attn.add_{x}_proj" for x in "qkv"),
    "double_blocks.{}.txt_attn.norm.query_norm": ("transformer_blocks.{}.attn.norm_added_q",),
    "double_blocks.{}.txt_attn.norm.key_norm": ("transformer_blocks.{}.attn.norm_added_k",),
    "double_blocks.{}.txt_attn.proj": ("transformer_blocks.{}.attn.to_add_out",),
    "double_blocks.{}.txt_mlp.0": ("transformer_blocks.{}.ff_context.net.0.proj",),
    "double_blocks.{}.txt_mlp.2": ("transformer_blocks.{}.ff_context.net.2",),
    "single_blocks.{}.modulation.lin": ("single_transformer_blocks.{}.norm.linear",),
    "single_blocks.{}.linear1": (
        *(f"single_transformer_blocks.{{}}.attn.to_{x}" for x in "qkv"),
        "single_transformer_blocks.{}.proj_mlp",
    ),
    "single_blocks.{}.norm.query_norm": ("single_transformer_blocks.{}.attn.norm_q",),
    "single_blocks.{}.norm.key_norm": ("single_transformer_blocks.{}.attn.norm_k",),
    "single_blocks.{}.linear2": ("single_transformer_blocks.{}.proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    "final_layer.linear": ("proj_out",),
}

# XLabs train the projections of a single block apart from its MLP; `formats` spells their keys as BFL modules and calls
# these rows of linear1 so, because BFL has no name for them.
_XLABS: Rules = {
    "single_blocks.{}.linear1_qkv": tuple(f"single_transformer_blocks.{{}}.attn.to_{x}" for x in "qkv"),
}

# The Open Model Initiative numbers the parts of what BFL fuses.
_OMI: Rules = {
    "img_in.proj": ("x_embedder",),
    **{
        f"double_blocks.{{}}.{stream}_attn.qkv.{index}": (f"transformer_blocks.{{}}.attn.{module}",)
        for stream, modules in (
            ("img", ("to_q", "to_k", "to_v")),
            ("txt", ("add_q_proj", "add_k_proj", "add_v_proj")),
        )
        for index, module in enumerate(modules)
    },
    **{
        f"single_blocks.{{}}.linear1.{index}": (f"single_transformer_blocks.{{}}.{module}",)
        for index, module in enumerate(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"))
    },
}

_MMDIT: Rules = {
    "x_embedder.proj": ("pos_embed.proj",),
    "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
    "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
    "joint_blocks.{}.x_block.adaLN_modulation.1": ("transformer_blocks.{}.norm1.linear",),
    "joint_blocks.{}.x_block.attn.qkv": tuple(f"transformer_blocks.{{}}.attn.to_{x}" for x in "qkv"),
    "joint_blocks.{}.x_block.attn.ln_q": ("transformer_blocks.{}.attn.norm_q",),
    "joint_blocks.{}.x_block.attn.ln_k": ("transformer_blocks.{}.attn.norm_k",),
    "joint_blocks.{}.x_block.attn.proj": ("transformer_blocks.{}.attn.to_out.0",),
    "joint_blocks.{}.x_block.attn2.qkv": tuple(f"transformer_blocks.{{}}.attn2.to_{x}" for x in "qkv"),
    "joint_blocks.{}.x_block.attn2.ln_q": ("transformer_blocks.{}.attn2.norm_q",),
    "joint_blocks.{}.x_block.attn2.ln_k": ("transformer_blocks.{}.attn2.norm_k",),
    "joint_blocks.{}.x_block.attn2.proj": ("transformer_blocks.{}.attn2.to_out.0",),
    "joint_blocks.{}.x_block.mlp.fc1": ("transformer_blocks.{}.ff.net.0.proj",),
    "joint_blocks.{}.x_block.mlp.fc2": ("transformer_blocks.{}.ff.net.2",),
    "joint_blocks.{}.context_block.adaLN_modulation.1": ("transformer_blocks.{}.norm1_context.linear",),
    "joint_blocks.{}.context_block.attn.qkv": tuple(f"transformer_blocks.{{}}.attn.add_{x}_proj" for x in "qkv"),
    "joint_blocks.{}.context_block.attn.ln_q": ("transformer_blocks.{}.attn.norm_added_q",),
    "joint_blocks.{}.context_block.attn.ln_k": ("transformer_blocks.{}.attn.norm_added_k",),
    "joint_blocks.{}.context_block.attn.proj": ("transformer_blocks.{}.attn.to_add_out",),
    "joint_blocks.{}.context_block.mlp.fc1": ("transformer_blocks.{}.ff_context.net.0.proj",),
    "joint_blocks.{}.context_block.mlp.fc2": ("transformer_blocks.{}.ff_context.net.2",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    "final_layer.linear": ("proj_out",),
}

_WAN: Rules = {
    "text_embedding.0": ("condition_embedder.text_embedder.linear_1",),
    "text_embedding.2": ("condition_embedder.text_embedder.linear_2",),
    "time_embedding.0": ("condition_embedder.time_embedder.linear_1",),
    "time_embedding.2": ("condition_embedder.time_embedder.linear_2",),
    "time_projection.1": ("condition_embedder.time_proj",),
    "img_emb.proj.0": ("condition_embedder.image_embedder.norm1",),
    "img_emb.proj.1": ("condition_embedder.image_embedder.ff.net.0.proj",),
    "img_emb.proj.3": ("condition_embedder.image_embedder.ff.net.2",),
    "img_emb.proj.4": ("condition_embedder.image_embedder.norm2",),
    **{
        f"blocks.{{}}.{theirs}_attn.{x}": (f"blocks.{{}}.{ours}.{module}",)
        for theirs, ours in (("self", "attn1"), ("cross", "attn2"))
        for x, module in (
            ("q", "to_q"),
            ("k", "to_k"),
            ("v", "to_v"),
            ("o", "to_out.0"),
            ("norm_q", "norm_q"),
            ("norm_k", "norm_k"),
        )
    },
    "blocks.{}.cross_attn.k_img": ("blocks.{}.attn2.add_k_proj",),
    "blocks.{}.cross_attn.v_img": ("blocks.{}.attn2.add_v_proj",),
    "blocks.{}.cross_attn.norm_k_img": ("blocks.{}.attn2.norm_added_k",),
    # The original numbers the norm of the cross-attention 3. What diffusers numbers 3 has no weight.
    "blocks.{}.norm3": ("blocks.{}.norm2",),
    "blocks.{}.ffn.0": ("blocks.{}.ffn.net.0.proj",),
    "blocks.{}.ffn.2": ("blocks.{}.ffn.net.2",),
    "head.head": ("proj_out",),
}

_Z_IMAGE: Rules = {
    "x_embedder": ("all_x_embedder.2-1",),
    "final_layer.linear": ("all_final_layer.2-1.linear",),
    "final_layer.adaLN_modulation.1": ("all_final_layer.2-1.adaLN_modulation.1",),
    **{
        f"{blocks}.{{}}.attention.{theirs}": tuple(f"{blocks}.{{}}.attention.{module}" for module in ours)
        for blocks in ("layers", "noise_refiner", "context_refiner")
        for theirs, ours in (
            ("qkv", ("to_q", "to_k", "to_v")),
            ("out", ("to_out.0",)),
            ("q_norm", ("norm_q",)),
            ("k_norm", ("norm_k",)),
        )
    },
}

DIALECTS: Mapping[str, Callable[[Shapes], Iterator[tuple[str, Meaning]]]] = {
    "sgm": _sgm,
    "transformers": _transformers,
    "bfl": _by_rules(_BFL),
    "xlabs": _by_rules(_XLABS),
    "omi": _by_rules(_OMI),
    "mmdit": _by_rules(_MMDIT),
    "wan": _by_rules(_WAN),
    "z-image": _by_rules(_Z_IMAGE),
}
