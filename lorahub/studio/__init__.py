"""A tiny Stable Diffusion, made here from nothing, on which the paper's effect can be seen on any machine.

`load()` is the pipeline and `path("lcm")` the file of a vector, as they ship; names are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorahub.studio.building import Plan as Plan, build as build
    from lorahub.studio.sampling import Sampler as Sampler, sample as sample, wearing as wearing
    from lorahub.studio.scoring import frechet as frechet, see as see
    from lorahub.studio.shipped import load as load, path as path, scorer as scorer
    from lorahub.studio.showing import show as show
    from lorahub.studio.styles import STYLES as STYLES
    from lorahub.studio.world import draw as draw, scenes as scenes

_HOME = {
    **dict.fromkeys(("Plan", "build"), "building"),
    **dict.fromkeys(("Sampler", "sample", "wearing"), "sampling"),
    **dict.fromkeys(("frechet", "see"), "scoring"),
    **dict.fromkeys(("load", "path", "scorer"), "shipped"),
    "show": "showing",
    "STYLES": "styles",
    **dict.fromkeys(("draw", "scenes"), "world"),
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lorahub.studio' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lorahub.studio.{_HOME[name]}"), name)
