"""What adapters, aliases and tags may be called: the one place that decides it.

A name is also used as a file name, in references (`NAME:VERSION`, `NAME@ALIAS`) and in expressions, and is printed to
terminals. So it is a whitelist: letters, digits and marks of any script, `_`, `-` and `.`, in Unicode form NFC.
Names that differ only by case or by compatibility characters are the same name (`name_key`).
"""

from __future__ import annotations

import unicodedata
from pathlib import PurePath

from registry.errors import InvalidError

MAX_BYTES = 200  # leaves room for ":VERSION" and ".safetensors" within the 255 bytes of a file name
MAX_TAG = 64
_RESERVED = {"con", "prn", "aux", "nul", "conin$", "conout$", "sha256"}
_RESERVED |= {f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"}


def adapter_name(name: str) -> str:
    """The name in NFC.

    Raises:
        InvalidError: the name cannot be a file name on every system, or is no name in a reference.
    """
    return _checked(name, "adapter name")


def alias_name(alias: str) -> str:
    """The alias in NFC; raises InvalidError like `adapter_name`."""
    return _checked(alias, "alias")


def tag_name(tag: str) -> str:
    """The tag in NFC and without spaces around it; tags may hold spaces and punctuation, but no comma.

    Raises:
        InvalidError: the tag is empty, too long, or holds a comma or an unprintable character.
    """
    clean = unicodedata.normalize("NFC", tag).strip()
    if not clean or len(clean) > MAX_TAG or not clean.isprintable() or "," in clean or clean.startswith("-"):
        raise InvalidError(
            f"expected a tag of 1 to {MAX_TAG} printable characters without comma or leading '-', got {tag[:80]!a}"
        )
    return clean


def name_key(name: str) -> str:
    """What two names share when a person, or a case-insensitive disk, would take them for one another."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def suggest_name(text: str) -> str:
    """A valid adapter name close to `text`, for example a file's stem; `adapter` when nothing usable is left."""
    text = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode("utf-8"))
    clean = "".join(c if _allowed(c) else "_" for c in text).strip("_.-")
    while "__" in clean:
        clean = clean.replace("__", "_")
    clean = clean.encode()[:MAX_BYTES].decode("utf-8", "ignore").rstrip("_.-")
    while clean and not (clean[0].isalnum() or clean[0] == "_"):  # a leading combining mark, left without its letter
        clean = clean[1:]
    if not clean:
        return "adapter"
    return (
        f"{clean}_" if _reserved(clean) and "." not in clean else clean.replace(".", "_") if _reserved(clean) else clean
    )


def _checked(name: str, noun: str) -> str:
    def refuse(why: str) -> InvalidError:
        return InvalidError(f"{name[:80]!a} cannot be an {noun}: {why}; try {suggest_name(name[:400])!r}")

    try:
        clean = unicodedata.normalize("NFC", name)
        length = len(clean.encode())
    except UnicodeEncodeError:
        raise refuse("it is not valid Unicode") from None
    if not clean:
        raise refuse("it is empty")
    if length > MAX_BYTES:
        raise refuse(f"it has {length} bytes, at most {MAX_BYTES} are allowed")
    bad = next((c for c in clean if not _allowed(c)), None)
    if bad is not None:
        raise refuse(f"it holds {bad!a}, only letters, digits, '_', '-' and '.' are allowed")
    if not (clean[0].isalnum() or clean[0] == "_") or clean.endswith("."):
        raise refuse("it must begin with a letter, digit or '_', and not end with '.'")
    if _reserved(clean):
        raise refuse("the system or the reference syntax reserves it")
    return clean


def _allowed(character: str) -> bool:
    return character.isalnum() or character in "_-." or unicodedata.category(character) in ("Mn", "Mc")


def _reserved(name: str) -> bool:
    return PurePath(name_key(name)).name.split(".", 1)[0] in _RESERVED
