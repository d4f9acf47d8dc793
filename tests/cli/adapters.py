"""Small adapters with known answers: ΔW of every layer is diagonal, so norms, angles and errors follow by hand.

Written with numpy, in the spellings that real trainers use, on real layers of SD 1.5.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from lorahub import bases

Diagonal = Mapping[int, float]
Tensors = dict[str, Any]

SHAPES = {
    module: shape
    for module, shape in [*bases.get("sd15").components["unet"].layers.items()]
    if module.startswith("down_blocks.0.") and ".attn" in module
}
LAYERS = tuple(SHAPES)[:12]
"""Both attentions of the first block and the self-attention of the second: ten layers 320 x 320, two 320 x 768."""

STYLE: Diagonal = {0: 2.0, 1: 1.0}
LCM: Diagonal = {0: 1.0, 2: 2.0, 3: 0.5}


def factors(module: str, diagonal: Diagonal, dtype: str) -> tuple[Any, Any]:
    """up [out, r] and down [r, in] whose product is the diagonal."""
    out, columns = SHAPES[module]
    up, down = np.zeros((out, len(diagonal)), dtype), np.zeros((len(diagonal), columns), dtype)
    for rank, (index, value) in enumerate(diagonal.items()):
        up[index, rank], down[rank, index] = value, 1
    return up, down


def kohya_tensors(diagonal: Diagonal = STYLE, *, alpha: float = 1.0, dtype: str = "float16") -> Tensors:
    """sd-scripts: the product is scaled by alpha / rank, so the factors hold the diagonal times rank / alpha."""
    tensors: Tensors = {}
    for module in LAYERS:
        up, down = factors(module, diagonal, dtype)
        stem = "lora_unet_" + module.replace(".", "_")
        tensors[f"{stem}.lora_up.weight"] = up * np.asarray(len(diagonal) / alpha, dtype)
        tensors[f"{stem}.lora_down.weight"] = down
        tensors[f"{stem}.alpha"] = np.asarray(alpha, "float32")
    return tensors


def diffusers_tensors(diagonal: Diagonal = LCM, *, dtype: str = "float32") -> Tensors:
    """diffusers: no alpha, so the scale is 1."""
    tensors: Tensors = {}
    for module in LAYERS:
        tensors[f"unet.{module}.lora_B.weight"], tensors[f"unet.{module}.lora_A.weight"] = factors(
            module, diagonal, dtype
        )
    return tensors


def write(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path, metadata)
    return path


def style(folder: Path) -> Path:
    """A kohya file, fp16, rank 2, alpha 1: norm sqrt(12 * 5)."""
    metadata = {"ss_base_model_version": "sd_v1", "ss_output_name": "style"}
    return write(folder / "style.safetensors", kohya_tensors(), metadata)


def lcm(folder: Path) -> Path:
    """A diffusers file, fp32, rank 3: norm sqrt(12 * 5.25)."""
    return write(folder / "lcm.safetensors", diffusers_tensors())


def peft_folder(folder: Path) -> Path:
    """The lcm adapter as PEFT saves it, with lora_alpha 6 and rank 3: its factors hold half the diagonal."""
    target = folder / "lcm-peft"
    target.mkdir()
    half = {index: value / 2 for index, value in LCM.items()}
    renamed = {key.replace("unet.", "base_model.model."): value for key, value in diffusers_tensors(half).items()}
    write(target / "adapter_model.safetensors", renamed)
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": [*LAYERS]}
    (target / "adapter_config.json").write_text(json.dumps(config))
    return target


def dense(path: Path) -> dict[str, Any]:
    """ΔW of every layer in float64, read from a kohya or diffusers file without lorahub."""
    from safetensors.torch import load_file  # numpy knows no bfloat16

    tensors = {key: value.double().numpy() for key, value in load_file(path).items()}
    result = {}
    for module in LAYERS:
        flat, dotted = "lora_unet_" + module.replace(".", "_"), f"unet.{module}"
        if f"{flat}.alpha" in tensors:
            up, down = tensors[f"{flat}.lora_up.weight"], tensors[f"{flat}.lora_down.weight"]
            result[module] = up @ down * (float(tensors[f"{flat}.alpha"]) / down.shape[0])
        elif f"{dotted}.lora_A.weight" in tensors:
            result[module] = tensors[f"{dotted}.lora_B.weight"] @ tensors[f"{dotted}.lora_A.weight"]
    return result


def diagonals(path: Path) -> list[list[float]]:
    """The first five diagonal entries of every ΔW, having checked that everything else is zero."""
    found = []
    for delta in dense(path).values():
        entries = np.diagonal(delta)[:5].copy()
        rest = delta.copy()
        rest[range(5), range(5)] = 0
        assert np.abs(rest).max() < 2e-3
        found.append(entries.tolist())
    return found
