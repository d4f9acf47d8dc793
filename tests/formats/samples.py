"""Small adapters in every spelling, as key -> shape, and tensors for them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
OUT, INN, RANK = 12, 10, 4


def pair(up: str, down: str, rank: int = RANK, out: int = OUT, inn: int = INN) -> Shapes:
    """The two halves of a linear LoRA."""
    return {up: (out, rank), down: (rank, inn)}


def kohya(stem: str, rank: int = RANK, kernel: tuple[int, ...] = ()) -> Shapes:
    """A LoRA with alpha as sd-scripts writes it."""
    return {
        f"{stem}.lora_down.weight": (rank, INN, *kernel),
        f"{stem}.lora_up.weight": (OUT, rank, *(1 for _ in kernel)),
        f"{stem}.alpha": (),
    }


def peft(stem: str, rank: int = RANK) -> Shapes:
    """A LoRA as PEFT writes it."""
    return pair(f"{stem}.lora_B.weight", f"{stem}.lora_A.weight", rank)


def loha(stem: str, rank: int = RANK) -> Shapes:
    """A LoHa of a linear layer."""
    halves = {f"{stem}.hada_w{n}_{x}": shape for n in (1, 2) for x, shape in (("a", (OUT, rank)), ("b", (rank, INN)))}
    return {**halves, f"{stem}.alpha": ()}


def lokr(stem: str, rank: int = RANK) -> Shapes:
    """A LoKr with a whole first factor: ΔW is [24, 30]."""
    return {
        f"{stem}.lokr_w1": (2, 3),
        f"{stem}.lokr_w2_a": (12, rank),
        f"{stem}.lokr_w2_b": (rank, 10),
        f"{stem}.alpha": (),
    }


def random(
    shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32, alpha: float = 2.0
) -> dict[str, Tensor]:
    """Tensors of these shapes; every alpha has the value given."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.full(shape, alpha, dtype=dtype)
        if key.endswith("alpha")
        else torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for key, shape in shapes.items()
    }
