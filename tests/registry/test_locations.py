from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from registry import Facts, Location, NotFoundError, Registry

Make = Callable[..., Facts]


def at(relpath: str, **other: int) -> Location:
    return Location(root="/loras", relpath=relpath, **({"size": 1, "mtime_ns": 2, "inode": 3, "device": 4} | other))


def test_a_place_comes_back_exactly(registry: Registry, facts: Make) -> None:
    odd = "sub/not utf-8 \udcff\udc80/é.safetensors"
    given = at(odd, size=2**40, mtime_ns=-(2**62), inode=2**64 - 1, device=2**63)
    registry.add_version("x", facts("a"), location=given)
    (found,) = registry.locations(root="/loras")
    assert found.seen_at is not None
    assert replace(found, seen_at=None, reference=None) == given
    assert found.reference == "x:1"
    assert registry.locations(root="/other") == ()


def test_an_inode_out_of_range_is_refused(registry: Registry, facts: Make) -> None:
    from registry import InvalidError

    with pytest.raises(InvalidError, match="64-bit"):
        registry.add_version("x", facts("a"), location=at("a", inode=2**64))
    assert registry.list() == ()


def test_missing_marks_and_deletes_nothing(registry: Registry, facts: Make) -> None:
    registry.add_version("x", facts("a"), location=at("a"))
    registry.add_version("x", facts("a"), location=at("twin"))
    assert registry.unreachable() == ()
    assert registry.mark_missing("/loras", ["a", "twin", "never there"]) == 2
    since = {place.relpath: place.missing_since for place in registry.locations(missing=True)}
    assert registry.mark_missing("/loras", ["a"]) == 0
    assert {place.relpath: place.missing_since for place in registry.locations(missing=True)} == since
    assert [record.reference for record in registry.unreachable()] == ["x:1"]
    registry.locate("x", at("a", mtime_ns=9))
    assert [place.relpath for place in registry.locations(reference="x", missing=False)] == ["a"]
    assert registry.unreachable() == ()


def test_a_replaced_file_moves_the_place_to_the_new_version(registry: Registry, facts: Make) -> None:
    registry.add_version("x", facts("a"), location=at("unique_spot"))
    registry.add_version("x", facts("b"), location=at("unique_spot", size=7))
    (place,) = registry.locations()
    assert (place.reference, place.size) == ("x:2", 7)
    assert [record.reference for record in registry.unreachable()] == ["x:1"]
    registry.add_version("y", facts("c"), location=at("unique_spot"))
    assert [adapter.name for adapter in registry.search("unique spot")] == ["y"]


def test_forgetting_a_place_keeps_the_version(registry: Registry, facts: Make) -> None:
    registry.add_version("x", facts("a"), location=at("findme"))
    assert len(registry.search("findme")) == 1
    assert registry.forget_locations("/loras", ["findme", "never there"]) == 1
    assert registry.locations() == registry.search("findme") == ()
    assert registry.get("x").number == 1
    with pytest.raises(NotFoundError):
        registry.locate("nobody", at("a"))
