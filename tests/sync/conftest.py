"""Two people and a Hub: each has a registry of their own, and both may write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorahub.workspace import adding
from lorahub.workspace.core import Workspace
from lorahub.workspace.opening import Catalogue
from registry import VersionRecord
from tests.hub import server
from tests.hub.conftest import hub as hub, refused as refused
from tests.hub.server import Hub
from tests.workspace import conftest as small
from tests.workspace.conftest import write_adapter

WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture(autouse=True)
def _smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three layers are enough to be told from one another."""
    monkeypatch.setattr(small, "LAYERS", 3)


@pytest.fixture
def home(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of the registry that is configured."""
    monkeypatch.setenv("LORAHUB_HOME", str(tmp_path / "registry"))
    monkeypatch.setenv("HF_TOKEN", server.TOKEN)
    return tmp_path / "registry"


@pytest.fixture
def mine(home: Path) -> Iterator[Catalogue]:
    """The configured registry, whose owner may write to `user/...`."""
    with Catalogue.open() as opened:
        yield opened


@pytest.fixture
def theirs(hub: Hub, tmp_path: Path) -> Iterator[Catalogue]:
    """The registry of somebody else."""
    with Catalogue.open(tmp_path / "theirs") as opened:
        yield opened


def add(workspace: Workspace, name: str, *, seed: int, **options: Any) -> VersionRecord:
    """A small adapter as the next version of a name: another seed is another vector."""
    path = workspace.registry.home.parent / "made" / f"{name}-{seed}.safetensors"
    adding.add(workspace, [write_adapter(path, seed=seed, **options)], name=name, weights=False)
    return workspace.get(name)


def asked_for_bytes(asked: list[str]) -> list[str]:
    """The requests that send something, or fetch weights."""
    return [line for line in asked if not line.startswith(("GET /api/", "HEAD "))]
