"""A registry of one's own, and small adapters on real layers to fill it with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorahub import bases
from lorahub.bases.model import flatten
from lorahub.workspace.core import Workspace

MakeAdapter = Callable[..., Path]
LAYERS = 12


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home that every Workspace.open() of the test uses."""
    monkeypatch.setenv("LORAHUB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def workspace(home: Path) -> Iterator[Workspace]:
    with Workspace.open() as opened:
        yield opened


@pytest.fixture(scope="session")
def make_adapter() -> MakeAdapter:
    return write_adapter


def write_adapter(
    path: Path,
    *,
    base: str = "sd15",
    seed: int = 0,
    rank: int = 2,
    spelling: str = "kohya",
    alpha: float | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A dozen attention layers in kohya or diffusers spelling; one seed means one vector, whatever the spelling.

    alpha: kohya only; the up factors make up for it, so that the vector is the same.
    """
    random = np.random.default_rng(seed)
    shapes = {name: shape for name, shape in bases.get(base).components["unet"].layers.items() if "attn2.to_" in name}
    tensors: dict[str, Any] = {}
    for name in list(shapes)[:LAYERS]:
        out, columns = shapes[name]
        up = random.integers(-8, 9, (out, rank)).astype("float16") / np.float16(64)
        down = random.integers(-8, 9, (rank, columns)).astype("float16") / np.float16(64)
        if spelling == "kohya":
            scale = 1.0 if alpha is None else alpha / rank
            stem = f"lora_unet_{flatten(name)}"
            tensors[f"{stem}.lora_up.weight"] = (up / np.float16(scale)).astype("float16")
            tensors[f"{stem}.lora_down.weight"] = down
            tensors[f"{stem}.alpha"] = np.asarray(rank if alpha is None else alpha, "float16")
        else:
            tensors[f"unet.{name}.lora_B.weight"], tensors[f"unet.{name}.lora_A.weight"] = up, down
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, dict(metadata or {}))
    return path
