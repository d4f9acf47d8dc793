"""A Hub for each test, and the real client turned to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from click.testing import CliRunner, Result
from huggingface_hub import constants, hf_api

from lorahub.cli import main
from tests.cli import adapters
from tests.hub.server import Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running Hub that the client in this process talks to, with an empty cache, from an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("LORAHUB_HOME", str(tmp_path / "no-registry"))
    with Hub() as server:
        turn_to(server.url, tmp_path, monkeypatch)
        yield server
        huggingface_hub.close_session()  # type: ignore[attr-defined]


def turn_to(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the client at another Hub, as HF_ENDPOINT and HF_HOME do when it is imported."""
    monkeypatch.setattr(hf_api.api, "endpoint", url)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where the client keeps what it downloads."""
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def style(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A kohya file: diag(2, 1) in every layer."""
    return adapters.style(tmp_path_factory.mktemp("style")).read_bytes()


@pytest.fixture(scope="session")
def lcm(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A diffusers file: diag(1, 0, 2, 0.5) in every layer."""
    return adapters.lcm(tmp_path_factory.mktemp("lcm")).read_bytes()


@pytest.fixture
def refused() -> Callable[..., str]:
    """Run a command that must fail with the code given; returns its one line on standard error."""

    def invoke(code: int, *arguments: str) -> str:
        result: Result = CliRunner().invoke(main, arguments, prog_name="lorahub")
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1, result.stderr
        assert "Traceback" not in result.stderr
        return lines[0].removeprefix("Error: ")

    return invoke
