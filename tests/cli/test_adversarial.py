"""Broken and hostile files from the shell: one clear line, the right exit code, nothing written, quickly."""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.cli import adapters, hostile
from tests.cli.conftest import Run

COMMANDS = {
    "inspect": lambda path: ("inspect", path),
    "combine": lambda path: ("combine", f"{path} + 0.5*style.safetensors", "-o", "out.safetensors"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", hostile.NOT_READABLE)
def test_unreadable(folder: Path, refused: Callable[..., str], command: str, name: str) -> None:
    content, said = hostile.NOT_READABLE[name]
    hostile.write(folder, name, content)
    start = time.process_time()
    message = refused(1, *COMMANDS[command](f"{name}.safetensors"))
    assert said in message
    assert command != "inspect" or message.startswith(f"{name}.safetensors"), "the message must say which file"
    assert len(message) < 400
    assert time.process_time() - start < 5  # they take milliseconds; unbounded work would take minutes


@pytest.mark.parametrize("name", hostile.NOT_A_VECTOR)
def test_described_but_refused_by_arithmetic(folder: Path, run: Run, refused: Callable[..., str], name: str) -> None:
    content, code, said = hostile.NOT_A_VECTOR[name]
    hostile.write(folder, name, content)
    assert run("inspect", f"{name}.safetensors").exit_code == 0
    for rule in ([], ["--rank", "1"], ["--format", "diffusers"]):
        message = refused(code, *COMMANDS["combine"](f"{name}.safetensors"), *rule)
        assert said in message
        assert name in message or hostile.STEM in message or "unet." in message, "the message must say where"


@pytest.mark.parametrize("name", ["dora", "oft", "unknown-keys"])
def test_inspect_says_that_it_is_no_vector(folder: Path, run: Run, name: str) -> None:
    hostile.write(folder, name, hostile.NOT_A_VECTOR[name][0])
    assert json.loads(run("inspect", f"{name}.safetensors", "--json").stdout)["files"][0]["additive"] is False
    text = run("inspect", f"{name}.safetensors").stdout
    assert "not a vector: " in text or "keys are not understood, such as what.is.this" in text


@pytest.mark.parametrize("name", ["nan", "inf"])
def test_compare_and_resize_refuse_nan(folder: Path, refused: Callable[..., str], name: str) -> None:
    hostile.write(folder, name, hostile.NOT_A_VECTOR[name][0])
    assert "NaN or Inf" in refused(7, "compare", f"{name}.safetensors", "style.safetensors")
    assert "NaN or Inf" in refused(7, "resize", f"{name}.safetensors", "-o", "out.safetensors", "--rank", "1")


def test_pickles_need_permission_and_run_no_code(folder: Path, run: Run, refused: Callable[..., str]) -> None:
    tensors = {key: torch.from_numpy(value) for key, value in adapters.kohya_tensors().items()}
    torch.save(tensors, folder / "style.pt")
    for command in COMMANDS.values():
        assert "pass --allow-pickle if you trust it" in refused(1, *command("style.pt"))
    combined = ["combine", "style.pt - style.safetensors", "-o", "zero.safetensors", "--allow-pickle"]
    assert run(*combined).exit_code == 0
    (folder / "evil.bin").write_bytes(pickle.dumps({"a": _Evil()}, protocol=2))
    assert "cannot be read as a pickle of plain tensors" in refused(
        1, "combine", "evil.bin", "-o", "out.safetensors", "--allow-pickle"
    )
    assert not (folder / "owned").exists()


class _Evil:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("owned",)


def test_a_pipe_is_not_waited_for(folder: Path, refused: Callable[..., str]) -> None:
    os.mkfifo(folder / "pipe.safetensors")
    assert "is not a regular file" in refused(1, "inspect", "pipe.safetensors")


def test_a_configuration_that_is_no_json(folder: Path, refused: Callable[..., str]) -> None:
    config = adapters.peft_folder(folder) / "adapter_config.json"
    for content in ("{", "[1]", "[" * 100_000, "\udcff"):
        config.write_bytes(content.encode("utf-8", "surrogateescape"))
        assert "adapter_config.json" in refused(1, "inspect", "lcm-peft")
        assert "adapter_config.json" in refused(1, "combine", "lcm-peft", "-o", "out.safetensors")
