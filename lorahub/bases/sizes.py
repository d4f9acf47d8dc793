"""The layers of a base as `detect` compares them: sizes under every spelling, and counts of layers of one kind.

The rule: everything here is derived from the tables of `library` when a base is first compared, and then kept.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from math import prod

from lorahub.bases import library
from lorahub.bases.model import Component, flatten

# Where a denoiser takes its latents in; inpainting, control and image-to-video models widen it and change nothing else.
_INPUT_LAYERS = frozenset(
    {"conv_in", "x_embedder", "pos_embed.proj", "patch_embedding", "img_in", "all_x_embedder.2-1"}
)


@dataclass(frozen=True)
class Table:
    """The modules of one component in every spelling, flattened."""

    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """(rows, columns); a normalisation has one column."""
    inputs: set[str] = field(default_factory=set)
    embeddings: set[str] = field(default_factory=set)
    norms: set[str] = field(default_factory=set)

    def add(self, key: str, module: str, rows: int, component: Component) -> None:
        """Enter one spelling of a module, or of the first of the modules it is stacked of."""
        shape = component.layers.get(module) or component.embeddings.get(module) or (rows, 1)
        self.sizes[key] = (rows, prod(shape[1:]))
        if module in _INPUT_LAYERS:
            self.inputs.add(key)
        elif module in component.norms:
            self.norms.add(key)
        elif module in component.embeddings:
            self.embeddings.add(key)


@cache
def tables(name: str) -> Mapping[str, list[Table]]:
    """prefix -> the tables of the components a file may mean by it; without a prefix it may mean any."""
    found: dict[str, list[Table]] = {}
    for component in library.get(name).components.values():
        table = Table()
        for dialect in component.aliases.values():
            for alias, spans in dialect.items():
                rows = sum(span.stop - span.start for span in spans)
                table.add(flatten(alias), spans[0].layer, rows, component)
        for module, shape in {**component.layers, **component.embeddings}.items():
            table.add(flatten(module), module, shape[0], component)
        for module, length in component.norms.items():
            table.add(flatten(module), module, length, component)
        for prefix in ("", *component.prefixes):
            found.setdefault(prefix, []).append(table)
    return found


@cache
def beginnings(name: str) -> tuple[str, ...]:
    """What every module name of a base begins with, in any spelling: its first segment, flattened."""
    parts = library.table(name)["components"].values()
    written = [part[group] for part in parts for group in ("layers", "norms", "embeddings")]
    written += [aliases for part in parts for aliases in part["aliases"].values()]
    return tuple({flatten(re.split(r"[.{]", module)[0]) for group in written for module in group})


def kind(layer: str) -> str:
    """The layer with the indices of its blocks left out."""
    return re.sub(r"\.\d+(?=\.)", ".#", layer)


@cache
def kinds(name: str) -> Counter[str]:
    """How many layers of each kind a base has."""
    components = library.get(name).components.values()
    return Counter(
        kind(f"{component.name}.{module}")
        for component in components
        for group in (component.layers, component.norms, component.embeddings)
        for module in group
    )
