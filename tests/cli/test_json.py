"""The shape of --json, schema 1: a key that goes away or changes its type breaks somebody's script."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run

MADE = {
    "schema": "int", "command": "str", "output": "str", "base": "str", "format": "str", "dtype": "str", "size": "int",
    "layers": "int", "data_sha256": "str", "expression": "str", "rank_min": "int", "rank_max": "int",
    "rank_before": "int", "rule": "str", "error": "float", "relative_error": "float", "read_back_error": "float",
    "method": "str", "settings": {}, "factor": "null",
}  # fmt: skip
WITHOUT_RULE = MADE | {"rule": "null", "error": "null", "relative_error": "null"}
MERGED = MADE | {"settings": {"share": "float"}, "factor": "float", "rule": "null"}
RESIZED = {name: type for name, type in MADE.items() if name not in ("schema", "command")}
BATCH = {
    "schema": "int", "command": "str", "folder": "str", "output": "str", "failed": [], "ignored": [],
    "resized": [RESIZED | {"source": "str", "size_before": "int"}],
}  # fmt: skip
INSPECTED = {
    "path": "str", "size": "int", "format": "str", "dtypes": {"F16": "int", "F32": "int"},
    "detection": {
        "base": "str", "candidates": ["str"], "confidence": "float", "evidence": ["str"], "declared": "str",
    },
    "parts": [{
        "name": "str", "layers": "int", "kinds": {"lora": "int"}, "ranks": ["int"], "scales": ["float"],
        "parameters": "int",
    }],
    "embeddings": [], "unknown": [], "not_additive": {}, "notes": [],
    "metadata": {"ss_base_model_version": "str", "ss_output_name": "str"}, "provenance": "null",
    "hashes": {"data_sha256": "str", "sshs_model_hash": "str", "verdict": "str"}, "additive": "bool",
}  # fmt: skip
RANK_USE = {"stored": "float", "used": "float", "energy": "float", "zero_layers": "int"}
COMPARED = {
    "schema": "int", "command": "str", "first": "str", "second": "str", "base": "str", "norms": ["float"],
    "cosine": "float", "distance": "float", "only_in_first": [], "only_in_second": [],
    "layers": {"*": {"norms": ["float"], "cosine": "float"}}, "rank_use": [RANK_USE],
}  # fmt: skip


def shape(value: Any) -> Any:
    """Types in place of values; equal shapes in a list, and of layers, are told once."""
    if isinstance(value, dict):
        shapes = {key: shape(inner) for key, inner in value.items()}
        first = next(iter(shapes), "")
        if len(shapes) > 1 and "." in first and all(inner == shapes[first] for inner in shapes.values()):
            return {"*": shapes[first]}
        return shapes
    if isinstance(value, list):
        shapes_of_list = [shape(inner) for inner in value]
        assert all(inner == shapes_of_list[0] for inner in shapes_of_list), value
        return shapes_of_list[:1]
    return "null" if value is None else type(value).__name__


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["combine", "style.safetensors", "-o", "x.safetensors", "--rank", "1"], MADE),
        (["combine", "style.safetensors", "-o", "x.safetensors"], WITHOUT_RULE),
        (["resize", "style.safetensors", "-o", "x.safetensors", "--rank", "1"], MADE),
        (["combine", "style.safetensors", "-o", "x.safetensors", "--method", "tsv", "--normalise"], MERGED),
        (["resize", ".", "-o", "small", "--rank", "1"], BATCH),
        (["convert", "style.safetensors", "-o", "x.safetensors", "--to", "kohya"], WITHOUT_RULE),
        (["compare", "style.safetensors", "lcm.safetensors"], COMPARED),
        (["inspect", "style.safetensors", "--hash"], {"schema": "int", "command": "str", "files": [INSPECTED]}),
        (
            ["formats"],
            {
                "schema": "int",
                "command": "str",
                "formats": [{"name": "str", "description": "str", "readable": "bool", "writable": "bool"}],
            },
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_shape(folder: Path, run: Run, arguments: list[str], expected: Any) -> None:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    facts = json.loads(result.stdout)
    assert shape(facts) == expected
    assert (facts["schema"], facts["command"]) == (1, arguments[0])


def test_bases(run: Run) -> None:
    facts = json.loads(run("bases", "--json").stdout)
    assert facts.keys() == {"schema", "command", "bases"}
    for base in facts["bases"]:
        assert base.keys() == {"name", "title", "components", "hub_ids"}
        assert all(isinstance(count, int) for count in base["components"].values())
