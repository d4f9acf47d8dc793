"""The studio that ships with lorahub as people have base models: its folder, a single file, a network that scores."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lorahub import studio
from lorahub.studio import shipped

PIPELINE = shipped.SHIPPED / "pipeline"
PROMPT = "red star on teal"
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_OUTER = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


class Features(torch.nn.Module):
    """The studio's scorer on uint8 pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.scorer = studio.scorer()

    def forward(self, pictures: Tensor) -> Tensor:
        return self.scorer(pictures.float() / 127.5 - 1)  # type: ignore[no-any-return]


def features(path: Path) -> Path:
    """The scorer as a program of torch.export, as `--feature-model` takes it."""
    shape = {0: torch.export.Dim("count", max=512)}
    like = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    torch.export.save(torch.export.export(Features(), (like,), dynamic_shapes=(shape,)), path)
    return path


def vectors(folder: Path, *names: str) -> None:
    """The vectors as NAME.safetensors."""
    for name in names:
        (folder / f"{name}.safetensors").write_bytes(studio.path(name).read_bytes())


def single_file(path: Path) -> Path:
    """The whole pipeline in one file, named as CompVis named SD 1.5's; that the names are theirs, diffusers proves."""
    pipe = studio.load()
    count, each = len(pipe.unet.config.block_out_channels), pipe.unet.config.layers_per_block
    blocks = len(pipe.vae.config.block_out_channels)
    found = {f"model.diffusion_model.{_unet(key, each)}": value for key, value in pipe.unet.state_dict().items()}
    found |= {f"first_stage_model.{_vae(key, blocks)}": value for key, value in pipe.vae.state_dict().items()}
    found |= {f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}": value
              for key, value in pipe.text_encoder.state_dict().items()}  # fmt: skip
    assert count == 2
    save_file({key: value.contiguous() for key, value in found.items()}, path)
    return path


def _unet(key: str, each: int) -> str:
    module, _, rest = key.rpartition(".")
    if module in _OUTER:
        return f"{_OUTER[module]}.{rest}"
    if key.startswith("mid_block"):
        _, kind, number, rest = key.split(".", 3)
        return f"middle_block.1.{rest}" if kind == "attentions" else f"middle_block.{2 * int(number)}.{_resnet(rest)}"
    side, block, kind, number, rest = key.split(".", 4)
    down = side == "down_blocks"
    place = (1 if down else 0) + int(block) * (each + 1) + (each if "samplers" in kind else int(number))
    name = f"{'input' if down else 'output'}_blocks.{place}"
    if kind == "resnets":
        return f"{name}.0.{_resnet(rest)}"
    if kind == "attentions":
        return f"{name}.1.{rest}"
    return f"{name}.0.op.{rest.removeprefix('conv.')}" if down else f"{name}.2.{rest}"


def _resnet(key: str) -> str:
    module, _, rest = key.partition(".")
    return f"{_RESNET[module]}.{rest}"


def _vae(key: str, blocks: int) -> str:
    for ours, theirs in (
        ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"),
        ("samplers.0", "sample"),
        ("resnets.", "block."),
    ):
        key = key.replace(ours, theirs)
    key = re.sub(r"mid_block\.block\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", key)
    key = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{blocks - 1 - int(found[1])}", key)
    return key.replace("down_blocks.", "down.")
