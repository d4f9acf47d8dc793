"""Small sound adapters on real layers of SD 1.5, and ways to spoil them. Spelled by hand, as trainers spell them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lorahub import bases
from lorahub.validate import checks
from lorahub.validate.finding import Finding, Severity
from lorahub.validate.opening import Subject, open_subject

Tensors = dict[str, Tensor]
Spoil = Callable[[Tensors, dict[str, str]], None]

SHAPES = bases.get("sd15").components["unet"].layers
LAYERS = tuple(name for name in SHAPES if ".attn2.to_" in name)[:12]
RANK = 4


def pairs(seed: int = 0, *, rank: int = RANK, layers: tuple[str, ...] = LAYERS) -> dict[str, tuple[Tensor, Tensor]]:
    """layer -> (up [out, rank], down [rank, in]), float32; an entry of ΔW is about 0.002."""
    random = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(SHAPES[name][0], rank, generator=random) * 0.02,
            torch.randn(rank, SHAPES[name][1], generator=random) * 0.05,
        )
        for name in layers
    }


def stem(layer: str) -> str:
    return f"lora_unet_{layer.replace('.', '_')}"


def kohya(factors: Mapping[str, tuple[Tensor, Tensor]], *, alpha: float | None = RANK) -> Tensors:
    """sd-scripts' keys, fp16 factors; without alpha the key is left out."""
    tensors: Tensors = {}
    for layer, (up, down) in factors.items():
        tensors[f"{stem(layer)}.lora_up.weight"] = up.half().contiguous()
        tensors[f"{stem(layer)}.lora_down.weight"] = down.half().contiguous()
        if alpha is not None:
            tensors[f"{stem(layer)}.alpha"] = torch.tensor(float(alpha))
    return tensors


def dotted(factors: Mapping[str, tuple[Tensor, Tensor]], start: str = "unet.") -> Tensors:
    """diffusers' and PEFT's keys, which hold no alpha."""
    tensors: Tensors = {}
    for layer, (up, down) in factors.items():
        tensors[f"{start}{layer}.lora_A.weight"] = down.half().contiguous()
        tensors[f"{start}{layer}.lora_B.weight"] = up.half().contiguous()
    return tensors


def write(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, dict(metadata or {}))
    return path


def sound(folder: Path, name: str = "sound", seed: int = 0, **more: float) -> Path:
    return write(folder / f"{name}.safetensors", kohya(pairs(seed, **more)))  # type: ignore[arg-type]


def opened(text: str | Path, **more: object) -> Subject:
    subject = open_subject(str(text))
    for name, value in more.items():
        setattr(subject, name, value)
    return subject


def findings(subject: Subject) -> dict[str, list[Finding]]:
    """check -> what it found, of all checks."""
    found: dict[str, list[Finding]] = {}
    for finding in checks.run(subject, checks.chosen((), claimed=subject.claims is not None)):
        found.setdefault(finding.check, []).append(finding)
    return found


def severities(found: Mapping[str, list[Finding]]) -> dict[str, Severity]:
    """check -> its worst severity."""
    return {
        name: max((each.severity for each in each_found), key=lambda s: s.badness) for name, each_found in found.items()
    }
