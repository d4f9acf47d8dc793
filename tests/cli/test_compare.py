"""lorahub compare: norms are sqrt(60) and sqrt(63), the inner product is 24."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli import adapters
from tests.cli.conftest import Run

TABLE = """\
                                 first        second
norm                           7.74597       7.93725
layers                              12            12
mean rank stored                     2             3
mean rank used                       2             3
mean rank of 99 %                    2             3
zero layers                          0             0
cosine 0.390360, distance 8.66025, base sd15
"""


def test_table(folder: Path, run: Run) -> None:
    result = run("compare", "style.safetensors", "lcm.safetensors")
    assert (result.exit_code, result.stdout, result.stderr) == (0, TABLE, "")


def test_layers(folder: Path, run: Run) -> None:
    result = run("compare", "style.safetensors", "lcm.safetensors", "--layers")
    table, _, layers = result.stdout.partition("\nlayer, norms, cosine\n")
    assert table == TABLE
    expected = [f"unet.{module}  2.236  2.291  0.3904" for module in adapters.LAYERS]
    assert sorted(layers.splitlines()) == sorted(expected)


def test_json(folder: Path, run: Run) -> None:
    facts = json.loads(run("compare", "style.safetensors", "lcm.safetensors", "--json").stdout)
    assert facts["norms"] == pytest.approx([math.sqrt(60), math.sqrt(63)])
    assert facts["cosine"] == pytest.approx(24 / math.sqrt(60 * 63))
    assert facts["distance"] == pytest.approx(math.sqrt(75))
    assert len(facts["layers"]) == 12
    assert facts["rank_use"][1] == {"stored": 3.0, "used": 3.0, "energy": 3.0, "zero_layers": 0}


def test_two_spellings_of_one_vector_are_equal(folder: Path, run: Run) -> None:
    adapters.peft_folder(folder)
    result = run("compare", "lcm-peft", "lcm.safetensors")
    assert result.stdout.endswith("cosine 1.000000, distance 0, base sd15\n")


def test_a_zero_adapter_has_no_angle(folder: Path, run: Run) -> None:
    adapters.write(folder / "zero.safetensors", adapters.diffusers_tensors({0: 0.0, 1: 0.0}))
    result = run("compare", "style.safetensors", "zero.safetensors")
    assert result.stdout.endswith("cosine undefined (one is zero), distance 7.74597, base sd15\n")
    assert "zero layers                          0            12\n" in result.stdout
    facts = json.loads(run("compare", "style.safetensors", "zero.safetensors", "--json").stdout)
    assert facts["cosine"] is None


def test_layers_that_only_one_has_count(folder: Path, run: Run) -> None:
    tensors = {key: value for key, value in adapters.diffusers_tensors().items() if "attn1" in key}
    adapters.write(folder / "self.safetensors", tensors)
    facts = json.loads(run("compare", "self.safetensors", "lcm.safetensors", "--base", "SD 1.5", "--json").stdout)
    assert facts["only_in_first"] == []
    assert sorted(facts["only_in_second"]) == sorted(f"unet.{name}" for name in adapters.LAYERS if "attn2" in name)
    assert facts["distance"] == pytest.approx(math.sqrt(4 * 5.25))
    assert facts["base"] == "sd15"


def test_refusals(folder: Path, refused: Callable[..., str], misused: Callable[..., str]) -> None:
    assert refused(4, "compare", "style.safetensors", "nothing.safetensors").startswith("no adapter 'nothing.saf")
    assert "Missing argument 'SECOND'" in misused("compare", "style.safetensors")
