from __future__ import annotations

import pytest

from registry.errors import InvalidError
from registry.references import Reference, parse_reference


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("style", Reference(name="style")),
        ("style:3", Reference(name="style", number=3)),
        ("style@prod", Reference(name="style", alias="prod")),
        ("sha256:abcdef", Reference(sha256="abcdef")),
        ("SHA256:ABCDEF0", Reference(sha256="abcdef0")),
        ("sha256:" + "0" * 64, Reference(sha256="0" * 64)),
        ("v1.5-x_y", Reference(name="v1.5-x_y")),
    ],
)
def test_the_four_forms(text: str, reference: Reference) -> None:
    assert parse_reference(text) == reference
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "@",
        "style:",
        "style:0",
        "style:-1",
        "style:01",
        "style:latest",
        "style:1:2",
        "style:1@prod",
        "style@a@b",
        "style:٣",
        "style:99999999999",
        "sha256",
        "sha256:",
        "sha256:abcde",
        "sha256:" + "0" * 65,
        "sha256:ghijkl",
        "sha256:abcde\n",
        "../x",
    ],
)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        parse_reference(text)
