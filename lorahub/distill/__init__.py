"""Make vectors: latent consistency distillation into a LoRA, and ordinary style fine-tuning.

`distill(pipeline, source, settings)` is the one entry point; names are imported on first use, so that reading settings
or planning a run needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorahub.distill.conditioning import (
        Batch as Batch,
        Conditioning as Conditioning,
        Source as Source,
        encode_prompts as encode_prompts,
        unconditional as unconditional,
    )
    from lorahub.distill.settings import Settings as Settings
    from lorahub.distill.trainer import Distilled as Distilled, Progress as Progress, distill as distill

_HOME = {
    **dict.fromkeys(("Batch", "Conditioning", "Source", "encode_prompts", "unconditional"), "conditioning"),
    "Settings": "settings",
    **dict.fromkeys(("Distilled", "Progress", "distill"), "trainer"),
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lorahub.distill' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lorahub.distill.{_HOME[name]}"), name)
