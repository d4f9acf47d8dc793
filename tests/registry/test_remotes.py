"""Where adapters are on the Hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from registry import Facts, InvalidError, NotFoundError, Registry, Remote

Make = Callable[..., Facts]
A, B = "a" * 64, "b" * 64
PLACE = Remote(
    repo="user/lora",
    branch="main",
    path="w.safetensors",
    commit="1" * 40,
    local_sha256=A,
    remote_sha256=B,
    files={"README.md": "2" * 40},
    said={"tags": ["x"], "licence": None},
)


def test_kept_as_it_was_said(registry: Registry, facts: Make) -> None:
    registry.add_version("style", facts("a"))
    assert registry.remote("style") is None
    registry.put_remote("Style", PLACE)
    known = registry.remote("style")
    assert known is not None
    assert known.synced_at is not None
    assert replace(known, synced_at=None) == PLACE
    registry.put_remote("style", replace(PLACE, branch="next", said=None))
    assert [(name, each.branch, each.said) for name, each in registry.remotes().items()] == [("style", "next", None)]


def test_it_follows_the_name_and_the_trash_and_ends_with_the_adapter(registry: Registry, facts: Make) -> None:
    registry.add_version("style", facts("a"))
    registry.put_remote("style", PLACE)
    registry.rename("style", "papercut")
    registry.remove("papercut")
    assert list(registry.remotes()) == ["papercut"]
    registry.purge()
    assert registry.remotes() == {}


def test_forgotten(registry: Registry, facts: Make) -> None:
    registry.add_version("style", facts("a"))
    registry.put_remote("style", PLACE)
    registry.forget_remote("style")
    registry.forget_remote("style")
    assert registry.remote("style") is None


def test_what_is_refused(registry: Registry) -> None:
    with pytest.raises(NotFoundError):
        registry.put_remote("nobody", PLACE)
    with pytest.raises(InvalidError, match="remote sha256"):
        replace(PLACE, remote_sha256="x")
