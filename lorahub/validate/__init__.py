"""Prove that an adapter is what it claims: in its file, in numbers, in pictures. Names are imported on first use.

`lorahub.validate` is this package, and also the function: once the package is imported, Python gives that name to it, so
the package can be called.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorahub.validate.finding import Finding as Finding, Severity as Severity
    from lorahub.validate.page import write_page as write_page
    from lorahub.validate.picturing import Pictures as Pictures
    from lorahub.validate.report import Report as Report
    from lorahub.validate.running import validate as validate
    from lorahub.validate.tuning import Tuning as Tuning, tune as tune

_HOME = {
    **dict.fromkeys(("Finding", "Severity"), "finding"),
    "write_page": "page",
    "Pictures": "picturing",
    "Report": "report",
    "validate": "running",
    **dict.fromkeys(("Tuning", "tune"), "tuning"),
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lorahub.validate' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lorahub.validate.{_HOME[name]}"), name)


class _Callable(ModuleType):
    def __call__(self, *given: Any, **named: Any) -> Report:
        from lorahub.validate.running import validate

        return validate(*given, **named)


sys.modules[__name__].__class__ = _Callable
