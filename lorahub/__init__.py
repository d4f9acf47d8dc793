"""lorahub: LoRA adapters of diffusion models as vectors. Names are imported on first use, so `import lorahub` is quick."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorahub.algebra import (
        Adapter as Adapter,
    )
    from lorahub.algebra import (
        LowRank as LowRank,
    )
    from lorahub.algebra import (
        RankRule as RankRule,
    )
    from lorahub.algebra import (
        Truncated as Truncated,
    )
    from lorahub.algebra import (
        budget as budget,
    )
    from lorahub.algebra import (
        cosine as cosine,
    )
    from lorahub.algebra import (
        energy as energy,
    )
    from lorahub.algebra import (
        fixed as fixed,
    )
    from lorahub.algebra import (
        gram as gram,
    )
    from lorahub.algebra import (
        inner as inner,
    )
    from lorahub.algebra import (
        norm as norm,
    )
    from lorahub.algebra import (
        project as project,
    )
    from lorahub.algebra import (
        relative as relative,
    )
    from lorahub.algebra import (
        spectrum as spectrum,
    )
    from lorahub.algebra import (
        truncate as truncate,
    )
    from lorahub.algebra import (
        weighted as weighted,
    )
    from lorahub.files import Saved as Saved
    from lorahub.files import save as save
    from lorahub.loading import combine as combine
    from lorahub.loading import load as load
    from lorahub.pipeline import attach as attach
    from lorahub.pipeline import detach as detach

_HOME = {
    **dict.fromkeys(
        (
            *("Adapter", "LowRank", "RankRule", "Truncated", "budget", "cosine", "energy", "fixed", "gram", "inner"),
            *("norm", "project", "relative", "spectrum", "truncate", "weighted"),
        ),
        "lorahub.algebra",
    ),
    **dict.fromkeys(("Comparison", "compare"), "lorahub.comparing"),
    **dict.fromkeys(("Inspection", "inspect"), "lorahub.files.inspecting"),
    **dict.fromkeys(("Saved", "save"), "lorahub.files.saving"),
    **dict.fromkeys(("combine", "load"), "lorahub.loading"),
    **dict.fromkeys(("attach", "detach"), "lorahub.pipeline"),
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lorahub' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
