"""lorahub: LoRA adapters of diffusion models as vectors. Names are imported on first use, so `import lorahub` is quick."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorahub.algebra import (
        Adapter as Adapter,
        LowRank as LowRank,
        RankRule as RankRule,
        Truncated as Truncated,
        budget as budget,
        cosine as cosine,
        energy as energy,
        fixed as fixed,
        gram as gram,
        inner as inner,
        norm as norm,
        normalised as normalised,
        orthogonal as orthogonal,
        project as project,
        relative as relative,
        spectrum as spectrum,
        truncate as truncate,
        weighted as weighted,
    )
    from lorahub.baking import Baked as Baked, bake as bake
    from lorahub.comparing import Comparison as Comparison, compare as compare
    from lorahub.extracting import Extracted as Extracted, extract as extract
    from lorahub.files.inspecting import Inspection as Inspection, inspect as inspect
    from lorahub.files.saving import Saved as Saved, save as save
    from lorahub.loading import combine as combine, load as load
    from lorahub.making import merged as merged
    from lorahub.pipeline import attach as attach, detach as detach
    from lorahub.sync import pull as pull, push as push, status as status
    from lorahub.validate import Report as Report, validate as validate
    from lorahub.workspace.opening import Catalogue as Catalogue, open as open

_HOME = {
    **dict.fromkeys(
        (
            *("Adapter", "LowRank", "RankRule", "Truncated", "budget", "cosine", "energy", "fixed", "gram", "inner"),
            *("norm", "normalised", "orthogonal", "project", "relative", "spectrum", "truncate", "weighted"),
        ),
        "lorahub.algebra",
    ),
    **dict.fromkeys(("Baked", "bake"), "lorahub.baking"),
    **dict.fromkeys(("Comparison", "compare"), "lorahub.comparing"),
    **dict.fromkeys(("Extracted", "extract"), "lorahub.extracting"),
    **dict.fromkeys(("Inspection", "inspect"), "lorahub.files.inspecting"),
    **dict.fromkeys(("Saved", "save"), "lorahub.files.saving"),
    **dict.fromkeys(("combine", "load"), "lorahub.loading"),
    "merged": "lorahub.making",
    **dict.fromkeys(("attach", "detach"), "lorahub.pipeline"),
    **dict.fromkeys(("pull", "push", "status"), "lorahub.sync"),
    **dict.fromkeys(("Report", "validate"), "lorahub.validate"),
    **dict.fromkeys(("Catalogue", "open"), "lorahub.workspace.opening"),
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lorahub' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
