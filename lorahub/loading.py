"""Load an adapter from whatever names it, and combine adapters by an expression.

A reference is tried as a path, then as a name in the registry, then as a Hub repository `user/repo[@revision][:file]`;
what exists nearer to the user wins, and an error lists what was tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from lorahub import expression
from lorahub.algebra.adapter import Adapter, weighted
from lorahub.algebra.recipe import Source
from lorahub.bases.model import Base
from lorahub.errors import UsageError
from lorahub.files.building import from_state_dict
from lorahub.files.loading import load_path
from lorahub.references import locate

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def load(
    source: str | Path | Mapping[str, Tensor] | DiffusionPipeline,
    *,
    base: str | Base | None = None,
    adapter: str | None = None,
    allow_pickle: bool = False,
) -> Adapter:
    """The adapter that `source` names or is.

    source: a path, a registry name, `sha256:prefix`, a Hub id (`user/repo[@revision][:file]`), a state dict in any
    format, or a diffusers pipeline that carries one (`adapter` says which, when there are several).
    base: the base model, when detection should not decide.
    Raises NotFoundError, FileFormatError, NotAdditiveError, BaseMismatchError; NetworkError or AuthError from the Hub.
    """
    if isinstance(source, (str, Path)):
        loaded = load_path(locate(source), base=base, allow_pickle=allow_pickle)
        if isinstance(source, str) and isinstance(loaded.recipe, Source) and not Path(source).exists():
            return replace(loaded, recipe=replace(loaded.recipe, name=source))
        return loaded
    if isinstance(source, Mapping):
        return from_state_dict(source, base=base)
    from lorahub.pipeline import read_adapter  # needs diffusers and peft

    return read_adapter(source, adapter, base=base)


def combine(
    text: str,
    *,
    base: str | Base | None = None,
    weights: Sequence[tuple[str, str, float]] = (),
    allow_pickle: bool = False,
) -> Adapter:
    """The adapter that an expression such as `0.8*style + 1.0*lcm` describes; exact, with the ranks added up.

    weights: (operand, pattern, weight) multiplies the layers of that operand whose name the regular expression is found
    in; the operand is spelled as in the expression, or `*` for all. The first pattern that fits a layer counts.
    Raises UsageError for a malformed expression or an operand that is not in it, and what `load` raises.
    """
    terms = expression.parse(text)
    known = {term.reference for term in terms}
    for operand, _, _ in weights:
        if operand != "*" and operand not in known:
            raise UsageError(f"no operand {operand!r} in the expression: it has {', '.join(sorted(known))}")
    total: Adapter | None = None
    loaded: dict[str, Adapter] = {}
    for term in terms:
        name = term.reference
        if name not in loaded:
            loaded[name] = load(name, base=base, allow_pickle=allow_pickle)
            patterns = {pattern: weight for operand, pattern, weight in weights if operand in ("*", name)}
            loaded[name] = weighted(loaded[name], patterns) if patterns else loaded[name]
        part = term.weight * loaded[name]
        total = part if total is None else total + part
    assert total is not None  # parse returns at least one term
    return total
