"""lorahub convert: the same ΔW in another spelling."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lorahub import header
from tests.cli import adapters
from tests.cli.conftest import Run

STYLE = [pytest.approx([2, 1, 0, 0, 0])] * 12
LCM = [pytest.approx([1, 0, 2, 0.5, 0])] * 12


def test_kohya_to_diffusers_keeps_the_dtype_and_the_vector(folder: Path, run: Run) -> None:
    result = run("convert", "style.safetensors", "-o", "d.safetensors", "--to", "diffusers")
    size = (folder / "d.safetensors").stat().st_size
    assert result.stdout == (
        f"d.safetensors: sd15, diffusers, fp16, {size / 1000:.3g} kB\n"
        "  12 layers, rank 2\n"
        "  read back and compared: ΔW differs by 0.0e+00 of its norm (fp16 rounding)\n"
    )
    written = header.read(folder / "d.safetensors")
    assert {info.dtype for info in written.tensors.values()} == {"F16"}
    assert "lora_adapter_metadata" in written.metadata
    assert written.metadata["ss_base_model_version"] == "sd_v1"
    assert adapters.diagonals(folder / "d.safetensors") == STYLE


def test_round_trip_through_all_formats(folder: Path, run: Run) -> None:
    adapters.peft_folder(folder)
    for source, target, to in (
        ("lcm-peft", "1.safetensors", "kohya"),
        ("1.safetensors", "2.safetensors", "diffusers"),
        ("2.safetensors", "3", "peft"),
        ("3", "4.safetensors", "kohya"),
    ):
        result = run("convert", source, "-o", target, "--to", to)
        assert result.exit_code == 0, result.output
    assert adapters.diagonals(folder / "1.safetensors") == LCM
    assert adapters.diagonals(folder / "2.safetensors") == LCM
    assert adapters.diagonals(folder / "4.safetensors") == LCM


def test_dtype_and_json(folder: Path, run: Run) -> None:
    result = run("convert", "lcm.safetensors", "-o", "b.safetensors", "--to", "kohya", "--dtype", "bf16", "--json")
    facts = json.loads(result.stdout)
    expected = {"schema": 1, "command": "convert", "output": "b.safetensors", "dtype": "bf16", "layers": 12}
    expected |= {"rule": None, "error": None, "relative_error": None, "read_back_error": 0.0}
    assert facts.items() >= expected.items()


def test_refusals(folder: Path, refused: Callable[..., str], misused: Callable[..., str]) -> None:
    assert "Missing option '--to'" in misused("convert", "style.safetensors", "-o", "x.safetensors")
    assert "'webui' is not one of" in misused("convert", "style.safetensors", "-o", "x.safetensors", "--to", "webui")
    assert refused(6, "convert", "style.safetensors", "-o", "lcm.safetensors", "--to", "kohya").startswith("lcm.saf")
    assert "names no file" in misused("convert", "style.safetensors", "-o", "/", "--to", "peft")


def test_values_that_overflow_fp16_are_refused(folder: Path, run: Run, refused: Callable[..., str]) -> None:
    adapters.write(folder / "huge.safetensors", adapters.diffusers_tensors({0: 1e30}))
    message = refused(7, "convert", "huge.safetensors", "-o", "x.safetensors", "--to", "kohya", "--dtype", "fp16")
    assert "float16" in message or "fp16" in message
    assert run("convert", "huge.safetensors", "-o", "x.safetensors", "--to", "kohya", "--dtype", "bf16").exit_code == 0
