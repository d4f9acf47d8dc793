"""The one way to name an adapter: `NAME`, `NAME:VERSION`, `NAME@ALIAS` or `sha256:PREFIX`.

Parsing is pure; what a reference points at is looked up in `registry.resolve`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from registry.errors import InvalidError
from registry.names import adapter_name, alias_name

MIN_PREFIX = 6
_VERSION = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_HEX = re.compile(rf"[0-9a-f]{{{MIN_PREFIX},64}}", re.ASCII)


@dataclass(frozen=True)
class Reference:
    """Either `sha256` is set, or `name` and at most one of `number` and `alias`."""

    name: str | None = None
    number: int | None = None
    alias: str | None = None
    sha256: str | None = None

    def __str__(self) -> str:
        if self.sha256 is not None:
            return f"sha256:{self.sha256}"
        if self.number is not None:
            return f"{self.name}:{self.number}"
        return f"{self.name}@{self.alias}" if self.alias is not None else f"{self.name}"


def parse_reference(text: str) -> Reference:
    """Read a reference.

    Raises:
        InvalidError: it is none of the four forms, a prefix has fewer than 6 hexadecimal digits, or a name is invalid.
    """
    head, colon, tail = text.partition(":")
    if colon and head.lower() == "sha256":
        if not _HEX.fullmatch(tail.lower()):
            raise InvalidError(f"expected sha256: and {MIN_PREFIX} to 64 hexadecimal digits, got {text[:100]!a}")
        return Reference(sha256=tail.lower())
    if colon:
        if not _VERSION.fullmatch(tail):
            raise InvalidError(f"expected NAME:VERSION with a version of 1 or more, got {text[:100]!a}")
        return Reference(name=adapter_name(head), number=int(tail))
    head, at, tail = text.partition("@")
    if at:
        return Reference(name=adapter_name(head), alias=alias_name(tail))
    return Reference(name=adapter_name(head))
