"""What is to be baked: an expression read into one vector and the DoRAs that are no vector, checked against a base.

The rule: everything that an adapter brings is baked, named in an error, or dropped because the caller said so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from lorahub import expression
from lorahub.algebra.adapter import Adapter
from lorahub.algebra.dora import Magnitude
from lorahub.algebra.recipe import is_same
from lorahub.baking.changes import DoraTerm
from lorahub.bases.model import Base
from lorahub.checkpoints import Checkpoint
from lorahub.errors import BaseMismatchError, UsageError
from lorahub.files.building import AmbiguousBaseError
from lorahub.loading import load_with_magnitudes

DROPS = ("text-encoder", "embeddings")
"""What can be left out: layers of text encoders, and textual-inversion tokens, which a checkpoint has no place for."""


@dataclass(frozen=True, eq=False)
class Request:
    """Everything to add: `adapter` holds all that is linear, and the recipe of the whole; `doras` by layer the rest."""

    adapter: Adapter
    doras: Mapping[str, tuple[DoraTerm, ...]]
    dropped: Collection[str] = ()

    @property
    def layers(self) -> list[str]:
        """Every layer whose weight changes."""
        linear = [name for name, layer in self.adapter.layers.items() if layer.rank]
        return list(dict.fromkeys([*linear, *self.doras]))


def read(
    what: str | Adapter, checkpoint: Checkpoint, *, base: str | Base | None, drop: Collection[str], allow_pickle: bool
) -> Request:
    """The request that an expression, or an adapter in memory, makes of this checkpoint.

    Raises UsageError for a malformed expression, for embeddings, and for nothing left to bake; BaseMismatchError for
    another base, and for layers that the checkpoint lacks; what `load` raises.
    """
    strange = set(drop) - set(DROPS)
    if strange:
        raise UsageError(f"cannot drop {', '.join(sorted(strange))}: expected {' or '.join(DROPS)}")
    if isinstance(what, Adapter):
        request = Request(_without(what, drop), {}, drop)
    else:
        request = _expressed(what, lambda reference: _load(reference, checkpoint, base, drop, allow_pickle))
        request = replace(request, dropped=drop)
    _check(request, checkpoint)
    return request


def _expressed(text: str, load: Callable[[str], tuple[Adapter, Mapping[str, Magnitude]]]) -> Request:
    terms = expression.parse(text)
    weights: dict[str, float] = {}
    for term in terms:
        weights[term.reference] = weights.get(term.reference, 0.0) + term.weight
    shares: list[tuple[float, Adapter, Mapping[str, Magnitude]]] = []
    for reference, weight in weights.items():
        adapter, magnitudes = load(reference)
        same = next((i for i, (_, other, _) in enumerate(shares) if is_same(adapter.recipe, other.recipe)), None)
        if same is None:
            shares.append((weight, adapter, magnitudes))
        else:  # one file under two names
            shares[same] = (shares[same][0] + weight, *shares[same][1:])
    doras: dict[str, tuple[DoraTerm, ...]] = {}
    linear: list[Adapter] = []
    for weight, adapter, magnitudes in shares:
        for name, magnitude in magnitudes.items() if weight else ():
            doras[name] = (*doras.get(name, ()), DoraTerm(weight, adapter.layers[name], magnitude))
        plain = {name: layer for name, layer in adapter.layers.items() if name not in magnitudes}
        linear.append(weight * replace(adapter, layers=plain))
    return Request(sum(linear[1:], start=linear[0]), doras)


def _load(
    reference: str, checkpoint: Checkpoint, base: str | Base | None, drop: Collection[str], allow_pickle: bool
) -> tuple[Adapter, Mapping[str, Magnitude]]:
    """An operand; one that fits several bases takes that of the checkpoint, if it is among them."""
    try:
        adapter, magnitudes = load_with_magnitudes(reference, base=base, allow_pickle=allow_pickle)
    except AmbiguousBaseError as doubt:
        if checkpoint.base not in doubt.candidates:
            raise
        adapter, magnitudes = load_with_magnitudes(reference, base=checkpoint.base, allow_pickle=allow_pickle)
    adapter = _without(adapter, drop)
    return adapter, {name: lengths for name, lengths in magnitudes.items() if name in adapter.layers}


def _without(adapter: Adapter, drop: Collection[str]) -> Adapter:
    if "text-encoder" in drop:
        adapter = replace(
            adapter,
            layers={name: layer for name, layer in adapter.layers.items() if not _of_text_encoder(name)},
            offsets={name: offset for name, offset in adapter.offsets.items() if not _of_text_encoder(name)},
        )
    return replace(adapter, embeddings={}) if "embeddings" in drop else adapter


def _check(request: Request, checkpoint: Checkpoint) -> None:
    adapter = request.adapter
    if adapter.base != checkpoint.base:
        raise BaseMismatchError(
            f"{adapter.name} is for {adapter.base}, and {checkpoint.name} is {checkpoint.base}: "
            "give --base if that was detected wrongly"
        )
    if adapter.embeddings:
        raise UsageError(
            f"{adapter.name} brings embeddings of tokens ({', '.join(sorted(adapter.embeddings))}), which a checkpoint "
            "has no place for: leave them out with --drop embeddings"
        )
    missing = [name for name in request.layers if name not in checkpoint.layers]
    missing += [name for name in adapter.offsets if name not in checkpoint.vectors]
    if missing:
        raise BaseMismatchError(_lacking(missing, checkpoint))
    for name in request.layers:
        shapes = [adapter.layers[name].matrix_shape] if name in adapter.layers else []
        shapes += [dora.delta.matrix_shape for dora in request.doras.get(name, ())]
        rows, *rest = checkpoint.layers[name].shape
        stored = (rows, math.prod(rest))
        wrong = next((shape for shape in shapes if shape != stored), None)
        if wrong is not None:
            raise BaseMismatchError(
                f"{name} is {list(wrong)} in {adapter.name}, and {list(stored)} in {checkpoint.name}"
            )
    for name, offset in adapter.offsets.items():
        if tuple(offset.shape) != checkpoint.vectors[name].shape:
            raise BaseMismatchError(
                f"{name} is {list(offset.shape)} in {adapter.name}, and "
                f"{list(checkpoint.vectors[name].shape)} in {checkpoint.name}"
            )
    if not request.layers and not any(bool(offset.any()) for offset in adapter.offsets.values()):
        raise UsageError(f"{adapter.name} is zero: there is nothing to bake")


def _lacking(missing: list[str], checkpoint: Checkpoint) -> str:
    components = {name.partition(".")[0] for name in (*checkpoint.layers, *checkpoint.vectors)}
    absent = sorted({name.partition(".")[0] for name in missing} - components)
    if absent and all(name.partition(".")[0] in absent for name in missing):
        text = f"{checkpoint.name} has no {' and no '.join(absent)}, which the adapter changes ({len(missing)} layers)"
        droppable = all(_of_text_encoder(name) for name in missing)
        return text + (": leave it out with --drop text-encoder" if droppable else "")
    named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    return f"{checkpoint.name} lacks {len(missing)} layers that the adapter changes: {named}"


def _of_text_encoder(name: str) -> bool:
    return name.startswith("text_encoder")
