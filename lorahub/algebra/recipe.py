"""How an adapter was made, as a value: a small tree of sources, weighted sums and steps that can be written down.

Recipes are what provenance in a file's metadata, lineage in the registry and replay are all made from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lorahub.expression import quote, render


@dataclass(frozen=True)
class Source:
    """An adapter as it came in: its name, the sha256 of its tensor data ("" when made in memory), its metadata.

    Where it was found is remembered while the process lives, for lineage, and never written down: the path, and if the
    registry has it, `NAME:VERSION` and the sha256 of the file.
    """

    name: str
    data_sha256: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    path: str = field(default="", compare=False)
    reference: str = field(default="", compare=False)
    file_sha256: str = field(default="", compare=False)


@dataclass(frozen=True)
class Sum:
    """A linear combination."""

    terms: tuple[tuple[float, Recipe], ...]


@dataclass(frozen=True)
class Step:
    """One operation that is not linear, with the settings that replay it."""

    operation: str
    settings: Mapping[str, object]
    of: tuple[Recipe, ...]


Recipe = Source | Sum | Step


def combine(weighted: list[tuple[float, Recipe]]) -> Recipe:
    """The sum, flattened: sums inside sums are multiplied out, the same adapters gathered, zero weights dropped.

    Equal recipes are the same adapter when all their sources have a hash; without one only identity tells.
    """
    gathered: list[tuple[float, Recipe]] = []
    for weight, recipe in weighted:
        for inner_weight, term in recipe.terms if isinstance(recipe, Sum) else ((1.0, recipe),):
            for index, (so_far, other) in enumerate(gathered):
                if is_same(term, other):
                    gathered[index] = (so_far + weight * inner_weight, other)
                    break
            else:
                gathered.append((weight * inner_weight, term))
    terms = tuple(term for term in gathered if term[0] != 0)
    return terms[0][1] if len(terms) == 1 and terms[0][0] == 1 else Sum(terms)


def is_same(one: Recipe, other: Recipe) -> bool:
    """Whether both are known to make the same adapter."""
    return one is other or (one == other and all(source.data_sha256 for source in sources(one)))


def sources(recipe: Recipe) -> Iterator[Source]:
    """Every source of the recipe, left to right, with repetitions."""
    if isinstance(recipe, Source):
        yield recipe
    else:
        for part in [term for _, term in recipe.terms] if isinstance(recipe, Sum) else recipe.of:
            yield from sources(part)


def coefficients(recipe: Recipe) -> list[tuple[float, Source]]:
    """Every source, once, with what it is multiplied by in all the sums, merges and scalings around it.

    What only gives a direction (`orthogonal`) counts as 0, an operand of any other step as 1.
    """
    if isinstance(recipe, Source):
        return [(1.0, recipe)]
    found: list[tuple[float, Source]] = []
    for share, part in recipe.terms if isinstance(recipe, Sum) else _shares(recipe):
        for weight, source in coefficients(part):
            known = next((i for i, (_, other) in enumerate(found) if other == source), None)
            if known is None:
                found.append((share * weight, source))
            else:
                found[known] = (found[known][0] + share * weight, source)
    return found


def _shares(step: Step) -> list[tuple[float, Recipe]]:
    """The operands of a step, with what it multiplies them by."""
    shares: Any = [1.0] * len(step.of)
    if step.operation == "merge":
        shares = step.settings["weights"]
    elif step.operation == "normalised":
        shares = [step.settings["factor"]]
    elif step.operation == "orthogonal":
        shares = [1.0, 0.0]
    return list(zip(shares, step.of, strict=True))


def expression(recipe: Recipe) -> str:
    """The recipe in one line: `truncate(0.8*style + 1*lcm, rule=fixed(64))`."""
    if isinstance(recipe, Source):
        return quote(recipe.name)
    if isinstance(recipe, Sum):
        return render([(weight, expression(term)) for weight, term in recipe.terms]) or "0"
    arguments = [expression(part) for part in recipe.of]
    arguments += [f"{name}={value}" for name, value in recipe.settings.items()]
    return f"{recipe.operation}({', '.join(arguments)})"


def to_json(recipe: Recipe) -> dict[str, object]:
    """The recipe as JSON-ready values; sources without their metadata.

    A mapping among the settings becomes a list of pairs: its order may count, and objects of JSON have none.
    """
    if isinstance(recipe, Source):
        return {"source": recipe.name, "data_sha256": recipe.data_sha256}
    if isinstance(recipe, Sum):
        return {"sum": [[weight, to_json(term)] for weight, term in recipe.terms]}
    settings = {
        name: [[key, inner] for key, inner in value.items()] if isinstance(value, Mapping) else value
        for name, value in recipe.settings.items()
    }
    return {"step": recipe.operation, "settings": settings, "of": [to_json(part) for part in recipe.of]}
