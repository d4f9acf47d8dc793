"""The README is run as a stranger would run it: every console and Python example, with the output compared.

`python -m tests.test_readme` writes the real output into it, to be read and committed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from lorahub.cli import main
from tests.hub import server
from tests.hub.answers import Account
from tests.hub.conftest import hub as hub
from tests.hub.server import Hub

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
CONSOLE = [body for language, body in BLOCKS if language == "console"]
PYTHON = [body for language, body in BLOCKS if language == "python"]
ON_THE_HUB = [line for language, body in BLOCKS if language == "sh" for line in body.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import make_adapters
    finally:
        sys.path.pop(0)
    path = tmp_path_factory.mktemp("readme")
    make_adapters.main(path)
    return path


@pytest.fixture(autouse=True)
def home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAHUB_HOME", str(folder / "home"))


def output_of(command: str) -> str:
    program, *arguments = shlex.split(command.removeprefix("$ "))
    assert program == "lorahub"
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_readme_has_examples() -> None:
    assert len(CONSOLE) >= 6
    assert len(PYTHON) >= 2


@pytest.mark.parametrize("block", CONSOLE, ids=lambda body: body.split("\n")[0][2:40])
def test_console_example(block: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    command, _, expected = block.partition("\n")
    # A result's hash may differ between processors, whose matrix products round differently.
    assert re.sub(r"\b[0-9a-f]{64}\b", "HASH", output_of(command)) == re.sub(r"\b[0-9a-f]{64}\b", "HASH", expected)


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_python_example(block: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_the_examples_of_sharing(hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a Hub on loopback, from a registry that has what the examples before made."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LORAHUB_HOME", str(tmp_path / "registry"))
    monkeypatch.setenv("HF_TOKEN", server.TOKEN)
    hub.accounts[server.TOKEN] = Account("me")
    weights = {"pytorch_lora_weights.safetensors": (folder / "lcm-lora.safetensors").read_bytes()}
    hub.repo("latent-consistency/lcm-lora-sdxl", weights)
    output_of("lorahub add papercut.safetensors --name fast")
    said = [output_of(line) for line in ON_THE_HUB]
    assert said[0].startswith("pushed fast:1 to me/fast-papercut (new), commit ")
    assert hub.repos["me/fast-papercut"].private
    assert said[1].startswith("pulled lcm-lora-sdxl:1 from latent-consistency/lcm-lora-sdxl@")
    assert said[2] == (
        "fast: the same as me/fast-papercut\nlcm-lora-sdxl: the same as latent-consistency/lcm-lora-sdxl\n"
    )
    assert said[3].startswith("me/fast-papercut\tsdxl\t")
    assert len(said) == 4


def update() -> None:
    """Run the console examples in a fresh folder and put their real output into the README."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    sys.path.insert(0, str(ROOT / "examples"))
    import make_adapters

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        make_adapters.main(Path(folder))
        os.environ["LORAHUB_HOME"] = str(Path(folder) / "home")
        for block in CONSOLE:
            command = block.partition("\n")[0]
            text = text.replace(f"```console\n{block}```", f"```console\n{command}\n{output_of(command)}```")
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    update()
