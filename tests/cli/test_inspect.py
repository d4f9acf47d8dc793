"""lorahub inspect. The sentences of evidence belong to the tests of base detection."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lorahub import header
from tests.cli import adapters
from tests.cli.conftest import Run


def without_evidence(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def test_kohya(folder: Path, run: Run) -> None:
    result = run("inspect", "style.safetensors")
    size = (folder / "style.safetensors").stat().st_size
    assert (result.exit_code, result.stderr) == (0, "")
    assert without_evidence(result.stdout) == (
        f"style.safetensors: kohya, F16, F32, {size / 1000:.3g} kB\n"
        "  base sd15 (confidence 0.99)\n"
        "  unet: 12 lora; rank 2, scale 0.5"
    )
    assert "    cross-attention input 768: only sd15\n" in result.stdout


def test_a_peft_folder(folder: Path, run: Run) -> None:
    adapters.peft_folder(folder)
    result = run("inspect", "lcm-peft/")
    assert result.stdout.startswith("lcm-peft/adapter_model.safetensors: peft, F32, ")
    assert result.stdout.endswith("  unet: 12 lora; rank 3, scale 2\n")


def test_a_folder_with_a_part_for_each_component(folder: Path, run: Run) -> None:
    part = adapters.peft_folder(folder)
    both = folder / "both"
    both.mkdir()
    part.rename(both / "unet")
    result = run("inspect", "both")
    assert result.stdout.startswith("both/unet/adapter_model.safetensors: peft")
    assert len(json.loads(run("inspect", "both", "--json").stdout)["files"]) == 1


def test_a_lie_in_the_metadata_is_shown_beside_the_truth(folder: Path, run: Run) -> None:
    adapters.write(folder / "lie.safetensors", adapters.kohya_tensors(), {"ss_base_model_version": "sdxl_base_v1-0"})
    text = run("inspect", "lie.safetensors").stdout
    assert "  base sd15 (" in text
    assert "  declared in the metadata: sdxl\n" in text


def test_the_hash_in_the_metadata_is_checked_on_demand(folder: Path, run: Run) -> None:
    assert run("convert", "style.safetensors", "-o", "k.safetensors", "--to", "kohya").exit_code == 0
    digest = header.data_sha256(folder / "k.safetensors", header.read(folder / "k.safetensors"))
    assert f"  data sha256 {digest} (metadata: agrees)\n" in run("inspect", "k.safetensors", "--hash").stdout
    data = bytearray((folder / "k.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "k.safetensors").write_bytes(data)
    assert "(metadata: differs)\n" in run("inspect", "k.safetensors", "--hash").stdout
    assert "(metadata: no hash in the metadata)\n" in run("inspect", "lcm.safetensors", "--hash").stdout


def test_provenance_is_shown(folder: Path, run: Run) -> None:
    run("combine", "0.5*style.safetensors + lcm.safetensors", "-o", "c.safetensors")
    text = run("inspect", "c.safetensors").stdout
    assert text.endswith("  made by lorahub 0.1.0: 0.5*style + 1*lcm\n")
    found = json.loads(run("inspect", "c.safetensors", "--json").stdout)["files"][0]
    assert found["provenance"]["weights"] == [0.5, 1.0]


def test_metadata_on_demand(folder: Path, run: Run) -> None:
    assert "ss_output_name" not in run("inspect", "style.safetensors").stdout
    assert "  ss_output_name: style\n" in run("inspect", "style.safetensors", "--metadata").stdout


def test_escapes_and_line_breaks_in_a_file_are_written_out(folder: Path, run: Run) -> None:
    tensors = adapters.kohya_tensors() | {"\x1b[31mred": adapters.np.zeros(3, "float32")}
    hostile = {"ss_\x1b]0;title\x07": "two\nlines \x9b31m \u202eright-to-left ☃ Δ"}
    adapters.write(folder / "hostile\x1b[2J.safetensors", tensors, hostile)
    text = run("inspect", "hostile\x1b[2J.safetensors", "--metadata").stdout
    assert all(line.isprintable() for line in text.splitlines())
    assert text.startswith("hostile\\x1b[2J.safetensors: kohya")
    assert "such as \\x1b[31mred\n" in text
    assert "  ss_\\x1b]0;title\\x07: two\\nlines \\x9b31m \\u202eright-to-left ☃ Δ\n" in text
    raw = run("inspect", "hostile\x1b[2J.safetensors", "--json").stdout
    assert all(line.isprintable() for line in raw.splitlines())
    assert json.loads(raw)["files"][0]["metadata"] == hostile


def test_an_alpha_that_is_no_number_is_null_in_json(folder: Path, run: Run) -> None:
    tensors = {
        key: adapters.np.asarray("nan", "float32") if key.endswith("alpha") else value
        for key, value in adapters.kohya_tensors().items()
    }
    adapters.write(folder / "nan.safetensors", tensors)
    result = run("inspect", "nan.safetensors", "--json")
    strict = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert None in strict["files"][0]["parts"][0]["scales"]
    assert "scale nan" in run("inspect", "nan.safetensors").stdout


def test_refusals(folder: Path, refused: Callable[..., str], misused: Callable[..., str]) -> None:
    assert refused(2, "inspect", ".").startswith(". holds 2 adapters: name one, such as ")
    (folder / "empty").mkdir()
    assert refused(4, "inspect", "empty").startswith("empty holds no adapter: expected one of ")
    missing = "no adapter 'x.safetensors': there is no such file, and it is no Hub repository (user/repo)"
    assert refused(4, "inspect", "x.safetensors").startswith(missing)
    assert refused(4, "inspect", "dir/x.CKPT").startswith("no adapter 'dir/x.CKPT'")
    assert refused(4, "inspect", "~nobody-of-that-name/x.safetensors").startswith("no adapter '~nobody")
    assert refused(2, "inspect", "").startswith("an empty name is no adapter: expected a file, a folder")
    assert refused(4, "inspect", "x" * 5000).startswith("no adapter 'xxx")
    assert misused("inspect") == "Missing argument 'ADAPTER'."
    assert "unexpected extra argument" in misused("inspect", "a", "b")
