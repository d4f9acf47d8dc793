"""What the metadata of a file says its base is.

The rule: metadata is a claim, written by trainers that get it wrong, so this module only reads it; `detect` weighs it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lorahub.bases import library

# Most specific first: lorahub's own, the model specification, kohya's trainers, PEFT, last the name of a local file.
_KEYS = (
    "lorahub.base",
    "modelspec.architecture",
    "ss_base_model_version",
    "base_model_name_or_path",
    "base_model",
    "ss_sd_model_name",
)
_SUFFIX = re.compile(r"\.(safetensors|ckpt|pt|bin|gguf)$", re.IGNORECASE)


@dataclass(frozen=True)
class Claim:
    """One metadata entry that names a base, or several bases it could mean (`wan2.1` is 14B or 1.3B)."""

    key: str
    value: str
    bases: tuple[str, ...]

    @property
    def base(self) -> str | None:
        return self.bases[0] if len(self.bases) == 1 else None

    def __str__(self) -> str:
        return f"metadata ({self.key}: {self.value!r}) says {' or '.join(self.bases)}"


def read(metadata: Mapping[str, str]) -> Claim | None:
    """The claim of the most specific entry that names any listed base."""
    for key in _KEYS:
        value = metadata.get(key)
        bases = _meant(value) if value else ()
        if value and bases:
            return Claim(key, value, bases)
    return None


def _meant(value: str) -> tuple[str, ...]:
    """The listed bases that a value can mean: by name or hub id, or by what trainers are known to write."""
    value = value.strip()
    # `stable-diffusion-v1/lora` names an architecture and a kind; `C:\\models\\sd_xl_base_1.0.safetensors` a file.
    spellings = dict.fromkeys((value, value.split("/")[0], _SUFFIX.sub("", re.split(r"[/\\]", value)[-1])))
    for spelling in spellings:
        name = library.canonical_name(spelling) if spelling else None
        if name is not None:
            return (name,)
        matching = tuple(name for name in library.names() if _declares(name, spelling))
        if matching:
            return matching
    return ()


def _declares(name: str, value: str) -> bool:
    return any(re.fullmatch(pattern, value, re.IGNORECASE) for pattern in library.table(name)["declared_as"])
