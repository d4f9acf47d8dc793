"""What a written file says of its origin: the recipe with hashes of its parents, and the metadata they brought.

The rule: no clock, no host, no path. The same inputs and settings make the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import cast

from lorahub.algebra.adapter import Adapter
from lorahub.algebra.recipe import Recipe, Source, Step, Sum, expression, sources, to_json
from lorahub.files.inspecting import PROVENANCE_KEY

_KEPT_PREFIXES = ("ss_", "modelspec.")
_NO_LONGER_TRUE = {
    "ss_network_dim", "ss_network_alpha", "ss_network_module", "ss_network_args", "modelspec.hash_sha256",
    "modelspec.merged_from",
}  # fmt: skip
"""Facts about the parent's own bytes or shape; a new file states its own."""


def tool_version() -> str:
    try:
        return version("lorahub-toolkit")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0+source"


def metadata(adapter: Adapter, output: Mapping[str, object] | None = None) -> dict[str, str]:
    """Metadata for a file that holds `adapter`: what its parents agree on, and its provenance.

    output: how the file is written (format, dtype, what is dropped), which a replay needs to know.
    `ss_*` and `modelspec.*` entries that all parents having them share are kept as they are. All of every parent's are
    kept inside the provenance, so nothing is lost when parents disagree.
    """
    parents = _parents(adapter)
    shared: dict[str, str] = {}
    for key in dict.fromkeys(key for parent in parents for key in parent.metadata if key.startswith(_KEPT_PREFIXES)):
        values = {parent.metadata[key] for parent in parents if key in parent.metadata}
        if len(values) == 1 and key not in _NO_LONGER_TRUE:
            shared[key] = values.pop()
    if len(parents) > 1:
        shared["modelspec.merged_from"] = ", ".join(
            parent.metadata.get("modelspec.title", parent.name) for parent in parents
        )
    shared["lorahub.base"] = adapter.base
    shared[PROVENANCE_KEY] = json.dumps(provenance(adapter, output), sort_keys=True, ensure_ascii=False)
    return shared


def provenance(adapter: Adapter, output: Mapping[str, object] | None = None) -> dict[str, object]:
    """The provenance of an adapter as JSON-ready values; `schema` counts changes of its shape."""
    recipe = adapter.recipe
    method, weights = _how(recipe)
    return {
        "schema": 1,
        "tool": f"lorahub {tool_version()}",
        "expression": expression(recipe),
        "base": adapter.base,
        "output": dict(output or {}),
        "method": method,
        "settings": _settings(recipe),
        "weights": weights,
        "recipe": to_json(recipe),
        "parents": [_parent(parent) for parent in _parents(adapter)],
    }


def _core(recipe: Recipe) -> Recipe:
    """Where the operands became one: a sum, a merge, a step on several, or the one source."""
    while isinstance(recipe, Step) and recipe.operation != "merge" and len(recipe.of) == 1:
        recipe = recipe.of[0]
    return recipe


def _how(recipe: Recipe) -> tuple[str, list[object]]:
    """(the method by which the operands became one, what each was multiplied by first)"""
    core = _core(recipe)
    if isinstance(core, Step) and core.operation == "merge":
        return str(core.settings["method"]), list(cast("list[object]", core.settings["weights"]))
    return "linear", [weight for weight, _ in core.terms] if isinstance(core, Sum) else [1.0]


def _settings(recipe: Recipe) -> dict[str, object]:
    """Step -> its settings, from the core outwards; what `_how` says of a merge is left out."""
    settings: dict[str, object] = {}
    core = _core(recipe)
    while isinstance(recipe, Step):
        told = ("method", "weights") if recipe.operation == "merge" else ()
        settings = {
            recipe.operation: {name: value for name, value in recipe.settings.items() if name not in told},
            **settings,
        }
        if recipe is core:
            break
        recipe = recipe.of[0]
    return settings


def _parents(adapter: Adapter) -> list[Source]:
    parents: list[Source] = []
    for source in sources(adapter.recipe):
        if source not in parents:
            parents.append(source)
    return parents


def _parent(parent: Source) -> dict[str, object]:
    """A parent with its own provenance as a nested object: a string inside a string would double its escapes each time."""
    entry: dict[str, object] = {
        "name": parent.name,
        "data_sha256": parent.data_sha256,
        "metadata": {key: value for key, value in parent.metadata.items() if key.startswith(_KEPT_PREFIXES)},
    }
    try:
        entry["provenance"] = json.loads(parent.metadata.get(PROVENANCE_KEY, "null"))
    except ValueError:  # somebody edited it: keep what it says, as text
        entry["provenance"] = parent.metadata[PROVENANCE_KEY]
    return entry
