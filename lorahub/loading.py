"""Load an adapter from whatever names it, and combine adapters by an expression.

A reference is tried as a path, then as a name in the registry, then as a Hub repository `user/repo[@revision][:file]`;
what exists nearer to the user wins, and an error lists what was tried.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from lorahub import expression
from lorahub.algebra.adapter import Adapter, weighted
from lorahub.algebra.dora import Magnitude
from lorahub.algebra.geometry import norm, normalised, orthogonal
from lorahub.algebra.ranks import RankRule
from lorahub.algebra.recipe import Source, is_same
from lorahub.bases import library
from lorahub.bases.model import Base
from lorahub.errors import UsageError
from lorahub.files.building import Builder, build, build_with_magnitudes, from_state_dict
from lorahub.files.loading import load_path, load_together
from lorahub.files.reading import Content
from lorahub.making import LINEAR, Combination, checked_settings
from lorahub.references import existing, find

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from registry import VersionRecord


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
        return _load_named(source, base, allow_pickle, build)
    if isinstance(source, Mapping):
        return from_state_dict(source, base=base)
    from lorahub.pipeline import read_adapter  # needs diffusers and peft

    return read_adapter(source, adapter, base=base)


def load_with_magnitudes(
    source: str | Path, *, base: str | Base | None = None, allow_pickle: bool = False
) -> tuple[Adapter, Mapping[str, Magnitude]]:
    """Like `load`, but a DoRA is read too: its ΔW as an adapter, and by layer the lengths that baking restores."""
    found: dict[str, Magnitude] = {}

    def build_one(content: Content, base: str | Base | None) -> Adapter:
        adapter, magnitudes = build_with_magnitudes(content, base)
        found.update(magnitudes)
        return adapter

    return _load_named(source, base, allow_pickle, build_one), found


def _load_named(
    source: str | Path, base: str | Base | None, allow_pickle: bool, build: Builder, *, hashed: bool = True
) -> Adapter:
    located = find(source)
    if located.record is not None:
        return load_version(located.path, located.record, base=base, build=build, hashed=hashed)
    loaded = load_path(located.path, base=base, allow_pickle=allow_pickle, build=build, hashed=hashed)
    if not isinstance(loaded.recipe, Source):
        return loaded
    name = loaded.recipe.name if existing(source) else str(source)
    return replace(loaded, recipe=replace(loaded.recipe, name=name, path=str(located.path.absolute())))


def load_version(
    path: Path, record: VersionRecord, *, base: str | Base | None = None, build: Builder = build, hashed: bool = True
) -> Adapter:
    """A version of the registry from its file, named as the registry names it. Raises what `load_path` raises.

    base: as in `load`; else the listed base that a person or the detection gave it, if any.
    build, hashed: as in `load_path`.
    """
    known = record.overrides.get("base") or record.base_detected
    loaded = load_path(
        path, base=base or (library.canonical_name(known) if known else None), build=build, hashed=hashed
    )
    if not isinstance(loaded.recipe, Source):
        return loaded
    source = replace(
        loaded.recipe,
        name=record.reference,
        path=str(path.absolute()),
        reference=record.reference,
        file_sha256=record.file_sha256 if record.hashed else "",
    )
    return replace(loaded, recipe=source)


def combine(
    text: str,
    *,
    method: str = LINEAR,
    settings: Mapping[str, str | float | int] | None = None,
    rule: RankRule | None = None,
    device: str = "cpu",
    base: str | Base | None = None,
    weights: Sequence[tuple[str, str, float]] = (),
    orthogonal_to: str | None = None,
    normalise: bool = False,
    allow_pickle: bool = False,
) -> Adapter:
    """The adapter that an expression such as `0.8*style + 1.0*lcm` describes.

    Without a method and a rank rule it is exact, the ranks added up; with one of them `Truncated`, or a multiple of that.
    rule: how ranks are reduced; most methods need one. device: where that is computed.
    The other options, and the errors, are those of `combination`, and of `lorahub.making.Combination.reduced`.
    """
    asked = combination(
        text,
        method=method,
        settings=settings,
        base=base,
        weights=weights,
        orthogonal_to=orthogonal_to,
        normalise=normalise,
        allow_pickle=allow_pickle,
    )
    result = asked.reduced(rule, device=device)
    return result if asked.length is None else normalised(result, asked.length)


def combination(
    text: str,
    *,
    method: str = LINEAR,
    settings: Mapping[str, str | float | int] | None = None,
    base: str | Base | None = None,
    weights: Sequence[tuple[str, str, float]] = (),
    orthogonal_to: str | None = None,
    normalise: bool = False,
    allow_pickle: bool = False,
) -> Combination:
    """What an expression asks for, its adapters loaded; `lorahub.making.make` makes it.

    method, settings: how the terms become one; addition by default.
    weights: (operand, pattern, weight) multiplies the layers of that operand whose name the regular expression is found
    in; the operand is spelled as in the expression, or `*` for all. The first pattern that fits a layer counts.
    orthogonal_to: an adapter; every operand but that one is replaced by its part at right angles to it in every layer.
    normalise: scale the result to the norm of the first operand as it was loaded, whatever its weight.
    Raises UsageError for a malformed expression, an operand that is not in it, or a method or setting that does not
    exist, and what `load` raises.
    """
    terms = expression.parse(text)
    settings = checked_settings(method, settings or {})
    names = list(dict.fromkeys(term.reference for term in terms))
    for operand, _, _ in weights:
        if operand != "*" and operand not in names:
            raise UsageError(f"no operand {operand!r} in the expression: it has {', '.join(sorted(names))}")
    wanted = names if orthogonal_to is None else list(dict.fromkeys([*names, orthogonal_to]))
    loaded = _once(dict(zip(wanted, load_all(wanted, base=base, allow_pickle=allow_pickle), strict=True)))
    operands = _weigh({name: loaded[name] for name in names}, weights)
    if orthogonal_to is not None:
        direction = loaded[orthogonal_to]
        others = {name: operand for name, operand in operands.items() if loaded[name] is not direction}
        if not others:
            raise UsageError(f"the expression has no adapter but {orthogonal_to!r}, which is not orthogonal to itself")
        operands |= {name: orthogonal(operand, direction) for name, operand in others.items()}
    shares: list[tuple[float, Adapter]] = []
    for term in terms:
        part = operands[term.reference]
        same = next((i for i, (_, other) in enumerate(shares) if is_same(part.recipe, other.recipe)), None)
        if same is None:
            shares.append((term.weight, part))
        else:
            shares[same] = (shares[same][0] + term.weight, shares[same][1])
    return Combination(shares, method, settings, norm(loaded[names[0]]) if normalise else None)


def _once(loaded: Mapping[str, Adapter]) -> dict[str, Adapter]:
    """One file under two names becomes one adapter, so that its factors are kept once, as in the recipe."""
    result: dict[str, Adapter] = {}
    for name, adapter in loaded.items():
        result[name] = next((other for other in result.values() if is_same(adapter.recipe, other.recipe)), adapter)
    return result


def load_all(
    sources: Sequence[str], *, base: str | Base | None = None, allow_pickle: bool = False, hashed: bool = True
) -> list[Adapter]:
    """Adapters that belong together: one that fits several bases takes that of the others. Raises what `load` raises.

    hashed: off spares reading all weights, for those that are not saved: their recipes do not identify the files.
    """
    return load_together(
        sources, lambda source, decided: _load_named(source, decided or base, allow_pickle, build, hashed=hashed)
    )


def _weigh(loaded: Mapping[str, Adapter], weights: Sequence[tuple[str, str, float]]) -> dict[str, Adapter]:
    """Each operand with its layers multiplied; a pattern for all operands must match in one of them at least."""
    result = dict(loaded)
    matched: dict[str, bool] = {}
    for name, adapter in loaded.items():
        patterns: dict[str, float] = {}
        for operand, pattern, weight in weights:
            if operand == "*":
                found = _matches(pattern, adapter)
                matched[pattern] = matched.get(pattern, False) or found
                if not found:
                    continue
            if operand in ("*", name):
                patterns.setdefault(pattern, weight)
        result[name] = weighted(adapter, patterns) if patterns else adapter
    for pattern, anywhere in matched.items():
        if not anywhere:
            raise UsageError(f"no layer of any operand matches {pattern!r}")
    return result


def _matches(pattern: str, adapter: Adapter) -> bool:
    try:
        return any(re.search(pattern, name) for name in (*adapter.layers, *adapter.offsets))
    except re.error as error:
        raise UsageError(f"{pattern!r} is not a regular expression: {error}") from None
