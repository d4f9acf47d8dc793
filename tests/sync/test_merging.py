"""Three-way merging of what is said, against a table of every case."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lorahub.sync.document import Said
from lorahub.sync.merging import merge

BASE = Said(base="sd15", kind="style", licence="mit", trigger_words=("a",), tags=("x", "y"))


@pytest.mark.parametrize(
    ("mine", "theirs", "result", "conflicts"),
    [
        ("mit", "mit", "mit", ()),
        ("bsd", "mit", "bsd", ()),
        ("mit", "bsd", "bsd", ()),
        ("mit", None, None, ()),
        (None, "mit", None, ()),
        ("bsd", "bsd", "bsd", ()),
        ("bsd", "gpl", "bsd", ("licence",)),
        (None, "gpl", None, ("licence",)),
    ],
)
def test_one_field(mine: str | None, theirs: str | None, result: str | None, conflicts: tuple[str, ...]) -> None:
    merged = merge(BASE, replace(BASE, licence=mine), replace(BASE, licence=theirs))
    assert (merged.said, merged.conflicts) == (replace(BASE, licence=result), conflicts)


def test_who_is_preferred_decides_only_conflicts() -> None:
    mine = replace(BASE, licence="bsd", kind="subject")
    theirs = replace(BASE, licence="gpl", trigger_words=("b",))
    both = replace(BASE, kind="subject", trigger_words=("b",))
    assert merge(BASE, mine, theirs, prefer="ours").said == replace(both, licence="bsd")
    assert merge(BASE, mine, theirs, prefer="theirs").said == replace(both, licence="gpl")
    assert merge(BASE, mine, theirs, prefer="theirs").conflicts == ()


def test_tags_are_merged_one_by_one() -> None:
    merged = merge(BASE, replace(BASE, tags=("x", "mine")), replace(BASE, tags=("theirs", "y")))
    assert (merged.said.tags, merged.conflicts) == (("mine", "theirs"), ())


def test_without_a_base_every_difference_is_one_to_decide() -> None:
    theirs = replace(BASE, kind="subject", licence=None, tags=("z",))
    merged = merge(None, BASE, theirs)
    assert set(merged.conflicts) == {"kind", "licence"}
    assert merged.said.tags == ("x", "y", "z")
    assert merge(None, BASE, BASE).conflicts == ()
