"""Write the tables of `data/` by building each listed model without weights: `python -m lorahub.bases.scan [NAME...]`.

The rule: what is written depends on `configs`, `dialects` and the model classes alone, so a second run changes no byte.
This is the only module of `bases` that needs torch, and it imports it when run.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorahub.bases.configs import RECIPES, Part, Recipe
from lorahub.bases.dialects import aliases
from lorahub.bases.live import Tables, tables
from lorahub.bases.tables import fold, fold_aliases

DATA = Path(__file__).parent / "data"


def main(arguments: Sequence[str]) -> None:
    """Scan the named bases, or all, and write their tables and the index."""
    known = {recipe.name: recipe for recipe in RECIPES}
    for name in arguments or known:
        if name not in known:
            raise SystemExit(f"unknown base {name!r}; known: {', '.join(known)}")
        (DATA / f"{name}.json").write_text(written(scan(known[name])), encoding="utf-8")
    (DATA / "index.json").write_text(written(index()), encoding="utf-8")


def index() -> dict[str, Any]:
    """Every base, in the order they are listed to people, with the other names it is found by."""
    return {recipe.name: [*recipe.also, *recipe.hub_ids] for recipe in RECIPES}


def scan(recipe: Recipe) -> dict[str, Any]:
    """The content of the data file of one base."""
    return {
        "name": recipe.name,
        "title": recipe.title,
        "hub_ids": recipe.hub_ids,
        "declared_as": recipe.declared_as,
        "components": {part.name: _component(part) for part in recipe.parts},
    }


def written(value: Any, indent: int = 0) -> str:
    """JSON with every layer on a line of its own."""
    if not isinstance(value, Mapping):
        return json.dumps(value) + ("" if indent else "\n")
    if not value:
        return "{}"
    pad = " " * (indent + 1)
    lines = [f"{pad}{json.dumps(key)}: {written(item, indent + 1)}" for key, item in value.items()]
    return "{\n" + ",\n".join(lines) + "\n" + " " * indent + "}" + ("" if indent else "\n")


def _component(part: Part) -> dict[str, Any]:
    layers, norms, embeddings = modules(part)
    shapes = layers | {name: (length,) for name, length in norms.items()} | embeddings
    return {
        "prefixes": part.prefixes,
        "kohya_dialect": part.kohya_dialect,
        "layers": fold(layers),
        "norms": fold(norms),
        "embeddings": fold(embeddings),
        "aliases": {dialect: fold_aliases(aliases(dialect, shapes)) for dialect in part.dialects},
    }


def modules(part: Part) -> Tables:
    """Layers, normalisations and embeddings of the model, in the order `named_modules` lists them."""
    return tables(build(part))


def build(part: Part) -> Any:
    """The model of a component, on the meta device: shapes without memory."""
    import torch

    library, _, name = part.model.partition(":")
    model_class = getattr(importlib.import_module(library), name)
    with torch.device("meta"):
        if library == "transformers":
            return model_class(model_class.config_class(**part.config))
        return model_class(**part.config)


if __name__ == "__main__":
    main(sys.argv[1:])
