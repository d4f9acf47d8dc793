"""A small registry to run the catalogue's commands on: two versions of `style`, an accelerator, and hostile words."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from lorahub.workspace.core import Workspace
from registry import Facts, RunSettings

HOSTILE = "\x1b[31m=1+1\t\n\u202e<b>"
LCM = RunSettings(
    scheduler="LCMScheduler",
    scheduler_args={"timestep_spacing": "trailing"},
    steps=4,
    steps_min=2,
    steps_max=8,
    guidance_min=1.0,
    guidance_max=2.0,
    lora_scale=1.0,
)


def put(workspace: Workspace, name: str, content: bytes, **found: Any) -> str:
    """Register a file with this content, which lies in the store; returns its reference."""
    import io

    blob = workspace.registry.blobs.put(io.BytesIO(content))
    tags, notes = found.pop("tags", ()), found.pop("notes", "")
    facts = Facts(file_sha256=blob.sha256, size=blob.size, format="kohya", **found)
    return workspace.registry.add_version(name, facts, tags=tags, notes=notes, stored=True).reference


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def fill() -> None:
    """Fill the registry at LORAHUB_HOME."""
    unet = {"ranks": {"unet": (8, 16)}, "layers": {"unet": 12}, "base_detected": "sd15"}
    with Workspace.open() as workspace:
        put(workspace, "style", b"style 1", kind="style", tags=["warm"], **unet)
        put(workspace, "style", b"style 2!", kind="style", notes="paper and scissors", evidence=("12 layers",), **unet)
        put(workspace, "lcm", b"lcm", kind="acceleration", base_detected="sdxl", ranks={"unet": (64,)}, run=LCM)
        put(
            workspace,
            "evil",
            b"evil",
            tags=["=cmd()"],
            trigger_words=(HOSTILE,),
            licence=HOSTILE,
            source={"path": HOSTILE},
        )
        workspace.registry.alias("style:1", "prod")


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a filled registry, which every command of the test uses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAHUB_HOME", str(tmp_path / "home"))
    fill()
    return tmp_path / "home"
