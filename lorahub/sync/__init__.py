"""Push, pull and sync between the registry and the Hugging Face Hub; every transfer is verified.

Each verb is a function of a workspace (`lorahub.open()`). Tokens, endpoint and offline mode are those of huggingface_hub
(HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE); nothing secret is kept here. Names are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorahub.sync.pulling import Pulled as Pulled, pull as pull
    from lorahub.sync.pushing import Pushed as Pushed, push as push
    from lorahub.sync.state import State as State, status as status
    from lorahub.sync.syncing import Synced as Synced, sync as sync

_HOME = {
    **dict.fromkeys(("Pulled", "pull"), "pulling"),
    **dict.fromkeys(("Pushed", "push"), "pushing"),
    **dict.fromkeys(("State", "status"), "state"),
    **dict.fromkeys(("Synced", "sync"), "syncing"),
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lorahub.sync' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lorahub.sync.{_HOME[name]}"), name)
