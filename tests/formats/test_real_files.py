"""Real adapters: what the files in shared/data/real-loras are known to hold."""

from __future__ import annotations

from functools import cache
from math import hypot
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from lorahub.bases.model import flatten
from lorahub.formats.decode import decode
from lorahub.formats.layout import Layout, parse

FOLDER = Path(__file__).parents[2].parent / "shared" / "data" / "real-loras"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"the real LoRA files are not at {FOLDER}")
COMPONENTS = {"lora_unet": "unet", "lora_te": "text_encoder"}


@cache
def load(name: str) -> tuple[Layout, dict[str, Tensor]]:
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        return parse(shapes, file.metadata() or {}), {key: file.get_tensor(key) for key in shapes}


Vector = dict[str, tuple[Tensor, Tensor]]


@cache
def vector(name: str) -> Vector:
    """flattened module with its component in front -> factors in float64, the scale in the first"""
    layout, tensors = load(name)
    assert not layout.unknown
    factors = {}
    for module in layout.modules:
        ((up, down, scale),) = decode(module, tensors).factors
        prefix = COMPONENTS.get(module.prefix, module.prefix)
        factors[f"{prefix}.{flatten(module.name)}"] = scale * up.double(), down.double()
    return factors


def norm(up: Tensor, down: Tensor) -> float:
    """Frobenius norm of up @ down."""
    return float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt())


@pytest.mark.parametrize(
    ("name", "form", "count"),
    [
        ("sd2-popart.kohya", "kohya", 128),
        ("sd2-popart.diffusers", "diffusers", 128),
        ("sd2-disney.kohya", "kohya", 128),
        ("sd15-disney.kohya", "kohya", 192),
        ("sd15-disney.cloneofsimo", "cloneofsimo", 192),
    ],
)
def test_format_and_number_of_modules(name: str, form: str, count: int) -> None:
    layout, _ = load(name)
    assert (layout.format, len(layout.modules)) == (form, count)


def test_two_spellings_of_popart_are_one_vector() -> None:
    kohya, diffusers = vector("sd2-popart.kohya"), vector("sd2-popart.diffusers")
    assert kohya.keys() == diffusers.keys()
    assert all(
        torch.equal(ours, theirs) for name in kohya for ours, theirs in zip(kohya[name], diffusers[name], strict=True)
    )


@pytest.mark.parametrize(("name", "expected"), [("sd2-popart.kohya", 8.566), ("sd2-disney.kohya", 50.352)])
def test_norms(name: str, expected: float) -> None:
    assert hypot(*(norm(up, down) for up, down in vector(name).values())) == pytest.approx(expected, rel=2e-4)


def test_the_numbers_of_cloneofsimo_name_the_modules_of_the_kohya_file() -> None:
    numbered, named = vector("sd15-disney.cloneofsimo"), vector("sd15-disney.kohya")
    assert numbered.keys() == named.keys()
    assert sum(name.startswith("unet.") for name in named) == 144
    for name, (up, down) in named.items():
        other_up, other_down = numbered[name]
        difference = norm(torch.hstack([up, -other_up]), torch.vstack([down, other_down]))
        # of fp16 rounding of both factors; any other order of modules fails by whole norms
        assert difference < 2e-3 * norm(up, down), name


def test_textual_inversion_tokens_are_reported() -> None:
    layout, tensors = load("sd15-disney.cloneofsimo")
    assert layout.embeddings == {"<s1>": ("<s1>",), "<s2>": ("<s2>",)}
    assert tensors["<s1>"].shape == (768,)
