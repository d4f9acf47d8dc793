"""lorahub resize. lcm is diag(1, 0, 2, 0.5) in every layer: squares 1, 4 and 0.25 of 5.25."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli import adapters
from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("rule", "named", "kept", "left_out"),
    [
        (["--rank", "1"], "fixed(1)", [0, 0, 2, 0, 0], 1.25),
        (["--rank", "64"], "fixed(64)", [1, 0, 2, 0.5, 0], 0),
        (["--energy", "0.95"], "energy(0.95)", [1, 0, 2, 0, 0], 0.25),
        (["--relative", "0.25"], "relative(0.25)", [1, 0, 2, 0, 0], 0.25),
    ],
)
def test_rules(folder: Path, run: Run, rule: list[str], named: str, kept: list[float], left_out: float) -> None:
    result = run("resize", "lcm.safetensors", "-o", "small.safetensors", "--dtype", "fp32", *rule)
    rank = sum(value > 0 for value in kept)
    was = " (was 3)" if rank < 3 else ""
    assert result.exit_code == 0, result.output
    assert re.fullmatch(
        r"small\.safetensors: sd15, kohya, fp32, [\d.]+ kB\n"
        rf"  12 layers, rank {rank}{re.escape(was)}\n"
        rf"  {re.escape(named)} leaves out {math.sqrt(left_out / 5.25):.3%} of the norm\n"
        r"  read back and compared: ΔW differs by \d\.\de[-+]\d\d of its norm \(fp32 rounding\)\n",
        result.stdout,
    )
    assert adapters.diagonals(folder / "small.safetensors") == [pytest.approx(kept, abs=1e-5)] * 12


def test_json(folder: Path, run: Run) -> None:
    result = run("resize", "lcm.safetensors", "-o", "small", "--rank", "2", "--format", "peft", "--json")
    facts = json.loads(result.stdout)
    expected = {
        "schema": 1,
        "command": "resize",
        "output": "small",
        "format": "peft",
        "dtype": "fp16",
        "rank_before": 3,
    }
    assert facts.items() >= expected.items()
    assert facts["error"] == pytest.approx(math.sqrt(12 * 0.25))
    assert (folder / "small" / "adapter_config.json").is_file()


def test_max_size(folder: Path, run: Run) -> None:
    assert run("resize", "lcm.safetensors", "-o", "small.safetensors", "--max-size", "45KiB").exit_code == 0
    assert (folder / "small.safetensors").stat().st_size <= 45 * 1024


def test_a_rule_is_needed(folder: Path, misused: Callable[..., str]) -> None:
    message = misused("resize", "lcm.safetensors", "-o", "small.safetensors")
    assert message == "say how small: --rank, --energy, --relative or --max-size"
