"""Files in folders, before and after they are hashed: what `Registry.place` makes of them, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from registry import Facts, InvalidError, Location, NotFoundError, Parent, Registry

Make = Callable[..., Facts]


def at(relpath: str, root: str = "/loras", inode: int = 1) -> Location:
    return Location(root=root, relpath=relpath, size=3, mtime_ns=5, inode=inode, device=7)


def unread(facts: Make, content: str) -> Facts:
    return replace(facts(f"stand-in for {content}"), hashed=False)


def test_a_file_is_unfindable_by_hash_until_it_is_hashed(registry: Registry, facts: Make) -> None:
    stand_in = unread(facts, "a")
    assert registry.place(at("a"), stand_in, names=["a"]) == ("a:1", "new")
    registry.tag("a", "mine")
    with pytest.raises(NotFoundError):
        registry.get(f"sha256:{stand_in.file_sha256}")
    assert [place.relpath for place in registry.locations(hashed=False)] == ["a"]

    assert registry.place(at("a"), facts("a"), names=["a"], norms={"x": 1.0}) == ("a:1", "same")

    record = registry.get("a")
    assert registry.get(f"sha256:{record.file_sha256}") == record
    assert (record.hashed, record.tags, registry.norms("a")) == (True, ("mine",), {"x": 1.0})
    assert registry.locations(hashed=False) == ()


def test_names_are_tried_in_order(registry: Registry, facts: Make) -> None:
    registry.place(at("a"), facts("a"), names=["a"])
    assert registry.place(at("b"), facts("b"), names=["A", "b"]) == ("b:1", "new")
    assert registry.place(at("c"), facts("a"), names=["a"]) == ("a:1", "same")
    with pytest.raises(InvalidError, match="taken"):
        registry.place(at("d"), facts("d"), names=["a", "b"])


def test_an_unread_file_that_changes_stays_one_version(registry: Registry, facts: Make) -> None:
    registry.place(at("a"), unread(facts, "a"), names=["a"])
    registry.place(at("a"), unread(facts, "b"), names=["a"])
    registry.place(at("a"), facts("c"), names=["a"])

    assert [record.file_sha256 for record in registry.versions("a")] == [facts("c").file_sha256]


def test_a_hashed_file_that_changes_is_the_next_version_and_can_go_back(registry: Registry, facts: Make) -> None:
    registry.place(at("a"), facts("one"), names=["a"])
    assert registry.place(at("a"), facts("two"), names=["a"]) == ("a:2", "replaced")
    assert registry.place(at("a"), facts("one"), names=["a"]) == ("a:1", "replaced")
    assert len(registry.versions("a")) == 2


def test_content_that_lost_its_place_is_known_again(registry: Registry, facts: Make) -> None:
    registry.place(at("old"), facts("a"), names=["old"])
    registry.edit("old", licence="mit")
    registry.place(at("new"), unread(facts, "a"), names=["new"])
    registry.edit("new", notes="seen")
    registry.tag("new", "x")
    assert registry.place(at("copy"), facts("a"), names=["copy"]) == ("copy:1", "new")
    registry.mark_missing("/loras", ["old", "copy"])

    assert registry.place(at("new"), facts("a"), names=["new"]) == ("old:1", "moved")

    record = registry.get("old")
    assert (record.licence, record.notes, record.tags) == ("mit", "seen", ("x",))
    assert [place.relpath for place in registry.locations(reference="old")] == ["new"]
    with pytest.raises(NotFoundError):
        registry.get("new")
    assert registry.names() == ("copy", "old")


def test_what_was_made_from_a_file_learns_its_hash(registry: Registry, facts: Make) -> None:
    registry.place(at("a"), unread(facts, "a"), names=["a"])
    parent = Parent(sha256=registry.get("a").file_sha256, reference="a:1")
    registry.add_version("child", facts("child"), parents=[parent])

    registry.place(at("a"), facts("a"), names=["a"])

    assert registry.parents("child") == (Parent(sha256=facts("a").file_sha256, reference="a:1"),)


def test_a_stored_version_takes_in_the_file_of_its_name(registry: Registry, facts: Make) -> None:
    registry.add_version("a", facts("a"))
    registry.place(at("a"), unread(facts, "a"), names=["a", "loras-a"])

    assert registry.place(at("a"), facts("a"), names=["a", "loras-a"]) == ("a:1", "same")
    assert registry.names() == ("a",)


def test_moves_and_marks(registry: Registry, facts: Make) -> None:
    registry.place(at("a"), facts("a"), names=["a"])
    assert registry.move(at("a"), at("b", root="/other"))
    assert not registry.move(at("a"), at("c"))
    assert registry.roots() == ("/other",)
    assert registry.mark_missing("/other", ["b"]) == 1
    assert registry.mark_present("/other", ["b", "b"]) == 1
    assert registry.mark_present("/other", ["b"]) == 0
    assert registry.search("b")[0].name == "a"
