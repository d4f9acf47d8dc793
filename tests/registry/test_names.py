from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, strategies as st

from registry.errors import InvalidError
from registry.names import MAX_BYTES, adapter_name, name_key, suggest_name, tag_name

HOSTILE = [
    "",
    ".",
    "..",
    "../etc/passwd",
    "a/b",
    "a\\b",
    "/abs",
    "C:",
    "style:3",
    "style@prod",
    "a:stream",
    "CON",
    "con.safetensors",
    "nul",
    "Com1",
    "lpt9.txt",
    "LPT¹",
    "sha256",
    "trailing.",
    "trailing ",
    " leading",
    "-rf",
    ".hidden",
    "a\0b",
    "a\nb",
    "a\x1b[31mb",
    "a\u202eb",
    "a\u200bb",
    "a*b",
    "a?b",
    'a"b',
    "a|b",
    "<script>",
    "\ud800",
    "\u0301accent",
    "x" * (MAX_BYTES + 1),
    "é" * MAX_BYTES,
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidError) as refused:
        adapter_name(name)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("name", ["style", "lcm-lora_v1.5", "_x", "3d", "日本語", "Ünïcode", "हिन्दी", "x" * MAX_BYTES])
def test_ordinary_names_pass_unchanged(name: str) -> None:
    assert adapter_name(name) == unicodedata.normalize("NFC", name)


def test_composed_and_decomposed_spellings_are_one_name() -> None:
    assert adapter_name("e\u0301") == adapter_name("\u00e9") == "\u00e9"


def test_case_twins_share_a_key() -> None:
    assert name_key("Straße") == name_key("STRASSE") != name_key("strase")


@given(st.text(st.characters(codec=None)))
def test_every_suggestion_is_a_name(text: str) -> None:
    assert adapter_name(suggest_name(text))


@pytest.mark.parametrize(
    ("text", "name"),
    [("My Style (v2)", "My_Style_v2"), ("con", "con_"), ("nul.x", "nul_x"), ("../..", "adapter"), ("a:b", "a_b")],
)
def test_suggestions_stay_close(text: str, name: str) -> None:
    assert suggest_name(text) == name


@pytest.mark.parametrize("tag", ["", "  ", "a,b", "a\nb", "\x1b[0m", "-x", "x" * 65])
def test_hostile_tags_are_refused(tag: str) -> None:
    with pytest.raises(InvalidError):
        tag_name(tag)


def test_tags_may_hold_spaces_and_colons() -> None:
    assert tag_name(" art: line work ") == "art: line work"
