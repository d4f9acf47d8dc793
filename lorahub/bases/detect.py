"""Which base model an adapter file is for, from the names and sizes of its layers.

The rule: keys and shapes outrank metadata, and nothing is guessed. A base is possible when every layer of the file
exists in it with the same size; among possible bases only evidence decides, and what stays open is reported as open.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from lorahub.bases import declared, library, sizes
from lorahub.bases.model import Base, flatten

MISFITS_ALLOWED = 0.05
"""A base stays possible, at lower confidence, while fewer than this share of the layers do not fit it."""
FILLED, PARTLY_FILLED = 0.95, 0.85
"""A base whose layers the file fills to this share beats bases it fills to less than the second."""
_CERTAIN, _BY_FILL, _BY_METADATA, _SPARSE, _MISFITS = 0.99, 0.9, 0.7, 0.8, 0.6


@dataclass(frozen=True)
class Seen:
    """One adapter layer of a file as parsed from its header."""

    prefix: str
    """As in `Component.prefixes`; empty if the file writes none."""
    module: str
    """As the file spells it, dotted or flattened."""
    out: int | None
    """Rows of the weight difference; None when unknown."""
    inn: int | None
    """Columns of the weight difference, input channels times kernel size; None when unknown."""
    dims: int | None = None
    """Dimensions of the factor that reads the input: 2 for a linear layer, 4 for a convolution; None when unknown."""

    def __str__(self) -> str:
        return f"{self.prefix}.{self.module}".lstrip(".")


@dataclass(frozen=True)
class Detection:
    """The base of a file, how sure that is, and why."""

    base: str | None
    candidates: tuple[str, ...]
    """Every base that keys and shapes allow."""
    confidence: float
    evidence: tuple[str, ...]
    declared: str | None
    """The base that the metadata names, whether or not it is believed."""


def detect(seen: Sequence[Seen], metadata: Mapping[str, str]) -> Detection:
    """The base that the layers `seen` in a file belong to; `metadata` is that of the same file."""
    claim = declared.read(metadata)
    said = claim.base if claim else None
    if not seen:
        evidence = ("the file has no adapter layers", *([str(claim)] if claim else []))
        return Detection(None, (), 0.0, evidence, said)
    layers = [(layer, flatten(layer.module)) for layer in seen]
    fits = sorted((_fit(name, layers) for name in library.names()), key=lambda fit: (-fit.matched, -fit.named))
    possible = _possible(fits)
    if not possible:
        evidence = (_nearest(fits), *([f"{claim}, but the layers do not fit it"] if claim else []))
        return Detection(None, (), 0.0, evidence, said)
    evidence_list = [*(fit.summary() for fit in possible), *_cross_attention(layers), *_exclusions(fits, possible)]
    candidates = tuple(fit.base for fit in possible)
    base, confidence = _decide(possible, seen, claim, evidence_list)
    return Detection(base, candidates, confidence, tuple(evidence_list), said)


def _decide(
    possible: Sequence[_Fit], seen: Sequence[Seen], claim: declared.Claim | None, evidence: list[str]
) -> tuple[str | None, float]:
    """The base and the confidence in it; what decided is added to the evidence."""
    ceiling = _CERTAIN if possible[0].matched == len(seen) else _MISFITS
    candidates = [fit.base for fit in possible]
    claimed = [name for name in candidates if claim and name in claim.bases]
    fills = {name: _fill(library.get(name), seen) for name in candidates}
    base, confidence = None, 0.0
    if len(candidates) == 1:
        base, confidence = candidates[0], ceiling
        filled, total = fills[base]
        if filled < total / 2 and base not in claimed:
            confidence = min(confidence, _SPARSE)
            evidence.append(
                f"the file fills only {filled} of the {total} layers of its kinds in {base}: "
                "an unlisted base that shares them cannot be ruled out"
            )
    else:
        base = _filled(fills, evidence) or _shaped(candidates, seen, evidence)
        confidence = min(ceiling, _BY_FILL) if base else 0.0
        if base is None:
            evidence.append(f"keys and shapes leave {', '.join(candidates)}: ambiguous")
            if len(claimed) == 1:
                base, confidence = claimed[0], min(ceiling, _BY_METADATA)
    if claim and (base in claim.bases or (base is None and claimed)):
        evidence.append(str(claim))
    elif claim:
        evidence.append(f"{claim}, but keys and shapes say {base or ' or '.join(candidates)}: metadata is not believed")
        confidence = min(confidence, _BY_METADATA) if claimed else confidence
    return base, confidence


@dataclass
class _Fit:
    """How the layers of a file compare with one base."""

    base: str
    total: int
    matched: int = 0
    named: int = 0
    """Layers that exist with another size."""
    misfit: str | None = None
    """The first layer that does not fit, in words."""
    variant: str | None = None
    """A layer that reads more input channels than the base's own, in words."""

    @property
    def missed(self) -> int:
        return self.total - self.matched

    def summary(self) -> str:
        layers = f"all {self.total} layers exist" if self.total > 1 else "the only layer exists"
        if self.missed:
            layers = f"{self.matched} of {self.total} layers exist"
        text = f"{layers} in {self.base} with {'these shapes' if self.total > 1 else 'this shape'}"
        if self.misfit:
            text += f"; {self.missed} do not, such as {self.misfit}"
        if self.variant:
            text += f"; {self.variant}: a variant with extra input channels"
        return text


def _fit(name: str, layers: Sequence[tuple[Seen, str]]) -> _Fit:
    fit = _Fit(name, len(layers))
    beginnings = sizes.beginnings(name)
    if not any(key.startswith(beginnings) for _, key in layers):  # most bases: not worth unfolding their tables
        fit.misfit = f"{layers[0][0]} (no such layer)"
        return fit
    tables = sizes.tables(name)
    for layer, key in layers:
        wrong: str | None = None
        for table in tables.get(layer.prefix, ()):
            size = table.sizes.get(key)
            if size is None:
                continue
            rows, columns = size
            if layer.out in (rows, None) and layer.inn in (columns, None):
                break
            if key in table.inputs and layer.out == rows and (layer.inn or 0) > columns:
                fit.variant = fit.variant or f"{layer} takes {layer.inn} inputs, {columns} there"
                break
            if key in table.embeddings and (layer.inn, layer.out) == size:
                break
            if key in table.norms and layer.out == rows:
                break
            wrong = f"{layer} ({layer.out} x {layer.inn} in the file, {rows} x {columns} there)"
        else:
            fit.named += wrong is not None
            fit.misfit = fit.misfit or wrong or f"{layer} (no such layer)"
            continue
        fit.matched += 1
    return fit


def _possible(fits: Sequence[_Fit]) -> list[_Fit]:
    """The fits nothing speaks against: all whole ones, or else the best of those with few misfits."""
    best = fits[0]
    if best.missed >= MISFITS_ALLOWED * best.total:
        return []
    order = library.names()
    return sorted((fit for fit in fits if fit.matched == best.matched), key=lambda fit: order.index(fit.base))


def _nearest(fits: Sequence[_Fit]) -> str:
    best = fits[0]
    if not best.matched and not best.named:
        return f"no listed base has any of these layers; the first is {best.misfit}"
    count = f"{best.matched} of {best.total}" if best.matched else "none"
    return (
        f"no listed base fits; the nearest, {best.base}, has {count} of the layers in these shapes, not {best.misfit}"
    )


def _exclusions(fits: Sequence[_Fit], possible: Sequence[_Fit]) -> list[str]:
    """Why the bases that share layers with the file are not the one, nearest first."""
    near = [fit for fit in fits if fit not in possible and fit.matched]
    return [f"not {fit.base}: {fit.missed} of {fit.total} layers do not fit, such as {fit.misfit}" for fit in near[:3]]


_CROSS_ATTENTION = re.compile(r"attn2_to_[kv]$")


def _cross_attention(layers: Sequence[tuple[Seen, str]]) -> list[str]:
    """The width of the text encoding, which tells the UNets apart."""
    widths = {layer.inn for layer, key in layers if layer.inn and _CROSS_ATTENTION.search(key)}
    if len(widths) != 1:
        return []
    width = widths.pop()
    bases = [name for name in library.names() if _cross_attention_width(name) == width]
    return [f"cross-attention input {width}: only {', '.join(bases)}"] if bases else []


@cache
def _cross_attention_width(name: str) -> int | None:
    if "unet" not in library.table(name)["components"]:
        return None
    layers = library.get(name).components["unet"].layers
    return next((shape[1] for module, shape in layers.items() if module.endswith("attn2.to_k")), None)


def _filled(fills: Mapping[str, tuple[int, int]], evidence: list[str]) -> str | None:
    """The one base whose layers of the kinds in the file are all there, when the other bases have many more of them."""
    shares = {name: filled / total for name, (filled, total) in fills.items()}
    whole = [name for name, share in shares.items() if share >= FILLED]
    if len(whole) != 1 or max(share for name, share in shares.items() if name != whole[0]) > PARTLY_FILLED:
        return None
    counts = [f"{filled} of {total} in {name}" for name, (filled, total) in fills.items()]
    evidence.append(f"of the layers of its kinds the file fills {', '.join(counts)}")
    return whole[0]


def _shaped(candidates: Sequence[str], seen: Sequence[Seen], evidence: list[str]) -> str | None:
    """The one base in which every layer is linear, or a convolution, as in the file (`proj_in` of SD1 and SD2)."""
    agreeing: list[str] = []
    for name in candidates:
        base = library.get(name)
        dims = [
            (layer.dims, len(shape))
            for layer in seen
            if layer.dims is not None
            for span in base.find(layer.prefix, layer.module) or ()
            if (shape := base.shape(span.layer)) is not None
        ]
        if all(in_file == there for in_file, there in dims):
            agreeing.append(name)
    if len(agreeing) != 1:
        return None
    evidence.append(f"only in {agreeing[0]} is every layer linear or a convolution as in the file")
    return agreeing[0]


def _fill(base: Base, seen: Sequence[Seen]) -> tuple[int, int]:
    """How many layers of the base the file touches, and how many of the same kinds the base has."""
    touched = {span.layer for layer in seen for span in base.find(layer.prefix, layer.module) or ()}
    kinds = {sizes.kind(layer) for layer in touched}
    return len(touched), sum(count for kind, count in sizes.kinds(base.name).items() if kind in kinds)
