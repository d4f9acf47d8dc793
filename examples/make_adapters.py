"""Make two small SDXL adapters whose arithmetic can be done by hand, in two spellings: what the demo and README use.

    papercut.safetensors   a "style":        kohya spelling, rank 8, alpha 4 (so its scale is 1/2)
    lcm-lora.safetensors   an "accelerator": diffusers spelling, rank 16, no alpha

Every layer is a sum of σ_j e_j e_j^T: singular values 1, 1/2, 1/3, ... on coordinates of their own (the style uses
coordinates 0 to 7, the accelerator 8 to 23). So both have known norms, stand at right angles to each other, and the best
approximation of their sum is known too. Real adapters have real values; the names and shapes here are SDXL's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from lorahub import bases
from lorahub.bases.model import flatten

STYLE_RANK, LCM_RANK, STYLE_ALPHA = 8, 16, 4.0


def layers() -> dict[str, tuple[int, ...]]:
    """The key and value projections of SDXL's cross-attention: 140 layers, [640 or 1280, 2048]."""
    unet = bases.get("sdxl").components["unet"]
    return {name: shape for name, shape in unet.layers.items() if name.endswith(("attn2.to_k", "attn2.to_v"))}


def factors(shape: tuple[int, ...], rank: int, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """up [out, rank] and down [rank, in] of Σ_j 1/(j+1) e e^T on the coordinates from `first` on."""
    up, down = torch.zeros(shape[0], rank), torch.zeros(rank, shape[1])
    for j in range(rank):
        up[first + j, j] = 1.0
        down[j, first + j] = 1.0 / (j + 1)
    return up, down


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    style: dict[str, torch.Tensor] = {}
    lcm: dict[str, torch.Tensor] = {}
    for name, shape in layers().items():
        up, down = factors(shape, STYLE_RANK, 0)
        kohya = f"lora_unet_{flatten(name)}"
        style[f"{kohya}.lora_up.weight"] = up.half()
        style[f"{kohya}.lora_down.weight"] = down.half()
        style[f"{kohya}.alpha"] = torch.tensor(STYLE_ALPHA).half()
        up, down = factors(shape, LCM_RANK, STYLE_RANK)
        lcm[f"unet.{name}.lora_A.weight"] = down.half()
        lcm[f"unet.{name}.lora_B.weight"] = up.half()
    save_file(style, folder / "papercut.safetensors", {"ss_base_model_version": "sdxl_base_v1-0"})
    save_file(lcm, folder / "lcm-lora.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
