"""What addition cannot express: merge methods over ΔW, layer by layer, and in the joint low-rank basis.

The table of methods is plain data and quick to import; torch comes with `merge`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorahub.merge.methods import METHODS, Method, Setting, check_settings

if TYPE_CHECKING:
    from lorahub.merge.merging import merge as merge

__all__ = ["METHODS", "Method", "Setting", "check_settings", "merge"]


def __getattr__(name: str) -> Any:
    if name != "merge":
        raise AttributeError(f"module 'lorahub.merge' has no attribute {name!r}")
    from lorahub.merge.merging import merge

    return merge
