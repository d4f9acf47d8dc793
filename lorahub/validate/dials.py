"""What a search turns: the coefficient of a term, or of one block of it, and back from its values to an expression.

The rule: the blocks of a term add up to the term, so turning all of them alike is turning the term.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lorahub.algebra.adapter import Adapter
from lorahub.errors import UsageError
from lorahub.expression import quote, render
from lorahub.validate.generating import Term
from lorahub.validate.searching import Range

_VARY = re.compile(r"(?P<term>.+)=(?P<low>[^:=]+):(?P<high>[^:=]+?)(?::(?P<step>[^:=]+))?")
_SHARE = 20
"""How many times a BY that is not given goes into its range."""


@dataclass(frozen=True)
class Dial:
    """A term of the expression, the block of it (all of it when empty), where it stands, and its range."""

    term: str
    block: str
    start: float
    range: Range

    @property
    def name(self) -> str:
        return f"{self.term}[{self.block}]" if self.block else self.term


def dials_of(terms: Sequence[Term], vary: Sequence[str]) -> list[Dial]:
    """A dial for each text `TERM=FROM:TO[:BY]`; none is every accelerator, from half its weight to one and a half.

    Raises UsageError that says which part is wrong.
    """
    own = {term.name: term.weight for term in terms}
    if not vary:
        fast = [term for term in terms if term.accelerates]
        if not fast:
            raise UsageError(
                f"no term is known to accelerate: say which to vary of {', '.join(own)}, such as "
                f"{terms[0].name}=0.5:1.5, or say in the registry what it is, with `lorahub edit`"
            )
        return [Dial(term.name, "", term.weight, _around(term.weight)) for term in fast]
    dials: list[Dial] = []
    for text in vary:
        found = _VARY.fullmatch(text)
        if found is None:
            raise UsageError(f"cannot read {text!r}: expected TERM=FROM:TO or TERM=FROM:TO:BY, such as lcm=0.5:1.5")
        name = found["term"].strip()
        if name not in own:
            raise UsageError(f"{text!r}: no term {name!r} in the expression: it has {', '.join(own)}")
        if name in (dial.term for dial in dials):
            raise UsageError(f"{name} is varied twice")
        low, high = _number(found["low"], text), _number(found["high"], text)
        step = (high - low) / _SHARE if found["step"] is None else _number(found["step"], text)
        dials.append(Dial(name, "", own[name], Range(low, high, step)))
    return dials


def by_block(terms: Sequence[Term], dials: Sequence[Dial]) -> tuple[list[Term], list[Dial]]:
    """The terms with those that are turned in pieces, a piece and a dial for each block (`unet.up_blocks`)."""
    turned = {dial.term: dial for dial in dials}
    pieces: list[Term] = []
    blocks: list[Dial] = []
    for term in terms:
        if term.name not in turned:
            pieces.append(term)
            continue
        for block, part in _blocks(term.adapter).items():
            dial = replace(turned[term.name], block=block)
            blocks.append(dial)
            pieces.append(replace(term, name=dial.name, adapter=part))
    return pieces, blocks


def spelled(
    terms: Mapping[str, float], dials: Sequence[Dial], values: Mapping[str, float]
) -> tuple[str, list[tuple[str, str, float]]]:
    """(the expression, the weights by block that `combine` takes besides) for what the dials stand at.

    terms: the weights as they were written. values: of the dials, by name. A term that is turned by block has weight 1
    in the expression.
    """
    turned = {dial.term: 1.0 if dial.block else values[dial.name] for dial in dials}
    expression = render([(turned.get(name, weight), quote(name)) for name, weight in terms.items()])
    return expression, [(d.term, pattern(d.block), values[d.name]) for d in dials if d.block]


def pattern(block: str) -> str:
    """The regular expression that finds the layers of a block and no others."""
    return rf"^{re.escape(block)}(\.|$)"


def _blocks(adapter: Adapter) -> dict[str, Adapter]:
    """Its parts by the first two words of their layers' names."""
    names = dict.fromkeys(_block(name) for name in (*adapter.layers, *adapter.offsets))
    return {
        block: replace(
            adapter,
            layers={name: layer for name, layer in adapter.layers.items() if _block(name) == block},
            offsets={name: offset for name, offset in adapter.offsets.items() if _block(name) == block},
        )
        for block in names
    }


def _block(layer: str) -> str:
    return ".".join(layer.split(".")[:2])


def _around(weight: float) -> Range:
    low, high = sorted((round(0.5 * weight, 10), round(1.5 * weight, 10)))
    return Range(low, high, (high - low) / _SHARE)


def _number(text: str, whole: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{whole!r}: {text.strip()!r} is no number")
    return value
