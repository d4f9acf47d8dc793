"""The base model at hand as something that layers can be compared with: for bases that are not listed, such as a tiny one."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from lorahub import bases
from lorahub.bases.library import register
from lorahub.bases.live import describe
from lorahub.bases.model import Base
from lorahub.errors import NotFoundError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_LIKE = {
    "StableDiffusionPipeline": "sd15",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux1",
}
"""Class of a pipeline -> the listed base whose files are named like its own."""
_MARK = "-like-"


def known(name: str) -> Base | None:
    """The base of that name, listed or described here; None for one that is not listed."""
    try:
        return bases.get(name)
    except NotFoundError:
        return None


def family(name: str) -> str:
    """The listed base that a described one is like, or the listed base itself."""
    return name.partition(_MARK)[0]


def describe_pipeline(pipe: DiffusionPipeline) -> str | None:
    """Register the layers of a pipeline as a base and return its name: `sd15-like-1a2b3c`; None for another class."""
    like = _LIKE.get(type(pipe).__name__)
    if like is None:
        return None
    models = {part: getattr(pipe, part) for part in bases.get(like).components if getattr(pipe, part, None) is not None}
    found = describe(like, models, like=like)
    shapes = [(part.name, sorted(part.layers.items())) for part in found.components.values()]
    named = replace(found, name=f"{like}{_MARK}{hashlib.sha256(repr(shapes).encode()).hexdigest()[:6]}")
    register(named)
    return named.name
