"""What can go wrong with the Hub: the class of every error, and the exit code and the line that the shell sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from lorahub import errors
from lorahub.hub.fetch import fetch
from tests.hub import faults
from tests.hub.conftest import turn_to
from tests.hub.server import Hub

WEIGHTS = "pytorch_lora_weights.safetensors"
REFUSED = faults.status(401, X_Error_Message="Invalid credentials in Authorization header")
FACTS, BODY, HEAD = "GET /api/models", "GET /user/lcm/resolve", "HEAD /user/lcm/resolve"


@pytest.fixture(autouse=True)
def _repositories(hub: Hub, lcm: bytes) -> None:
    hub.repo("user/lcm", {WEIGHTS: lcm, "README.md": b"#"})
    hub.repo("user/gated", {WEIGHTS: lcm}, gated=True)
    hub.repo("user/none", {"README.md": b"#"})
    hub.repo("user/empty")


@pytest.mark.parametrize(
    ("reference", "kind", "said"),
    [
        ("user/lmc", errors.NotFoundError, "no such repository, or it is private and needs HF_TOKEN"),
        ("user/lcm@v9", errors.NotFoundError, "no such revision"),
        ("user/lcm:x.safetensors", errors.NotFoundError, f"no such file; it holds {WEIGHTS}, README.md"),
        ("user/none", errors.NotFoundError, "user/none holds no .safetensors file; it holds README.md"),
        ("user/empty", errors.NotFoundError, "user/empty holds no .safetensors file; it holds nothing"),
        ("user/gated", errors.AuthError, "the repository is gated: ask for access on its page, then set HF_TOKEN"),
        ("user/a--b", errors.UsageError, "a--b"),
    ],
)
def test_what_is_not_there(hub: Hub, refused: Callable[..., str], reference: str, kind: type, said: str) -> None:
    with pytest.raises(kind) as raised:
        fetch(reference)
    assert said in str(raised.value)
    assert type(raised.value) is kind
    assert said in refused(kind.exit_code, "inspect", reference)


@pytest.mark.parametrize(
    ("where", "fault", "kind", "said"),
    [
        (FACTS, REFUSED, errors.AuthError, "the token is missing or not valid"),
        (FACTS, faults.status(403), errors.AuthError, "the token may not do this"),
        (FACTS, faults.status(409), errors.ConflictError, "it exists already"),
        (FACTS, faults.status(418), errors.LorahubError, "the Hub answered 418"),
        (FACTS, faults.status(429), errors.NetworkError, "too many requests: try again later"),
        (FACTS, faults.status(500), errors.NetworkError, "the Hub answered 500"),
        (FACTS, faults.status(503), errors.NetworkError, "the Hub answered 503"),
        (FACTS, faults.web_page, errors.NetworkError, "the answer does not come from a Hub: look at HF_ENDPOINT"),
        (FACTS, faults.cut_off, errors.NetworkError, "the Hub cannot be reached ("),
        (FACTS, faults.status(302, Location="/api/models/user/lcm"), errors.NetworkError, "the Hub cannot be reached ("),
        (HEAD, faults.web_page, errors.NetworkError, "header"),
        (HEAD, faults.status(403), errors.AuthError, "the token may not do this"),
        (HEAD, faults.status(404, X_Error_Code="EntryNotFound"), errors.NotFoundError, "no such file in the repository"),
        (BODY, faults.status(503), errors.NetworkError, "the Hub answered 503"),
        (BODY, faults.shortened, errors.NetworkError, "Consistency check failed"),
    ],
)  # fmt: skip
def test_what_the_hub_does_wrong(
    hub: Hub, cache: Path, refused: Callable[..., str], where: str, fault: faults.Change, kind: type, said: str
) -> None:
    hub.fail(where, fault, times=1000)
    with pytest.raises(kind) as raised:
        fetch("user/lcm")
    assert type(raised.value) is kind
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert said in refused(kind.exit_code, "inspect", "user/lcm")
    assert [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size > 1000] == []


def test_the_line_says_that_there_is_no_such_file_either(refused: Callable[..., str]) -> None:
    message = refused(4, "combine", "0.5*user/lmc", "-o", "x.safetensors")
    assert message.startswith("no file 'user/lmc' here; as a Hub repository: no such repository")
    assert not Path("x.safetensors").exists()


def test_a_token_the_hub_does_not_know(monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_stale")
    assert "the token is missing or not valid" in refused(3, "inspect", "user/lcm")


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]) -> None:
    with Hub() as gone:
        url = gone.url
    turn_to(url, tmp_path, monkeypatch)
    assert "the Hub cannot be reached (" in refused(5, "inspect", "user/lcm")
    with pytest.raises(errors.NetworkError):
        fetch("user/lcm")


@pytest.mark.parametrize("url", ["not-a-url", "http://", "http://[::bad", "ftp://127.0.0.1"])
def test_an_endpoint_that_is_no_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str], url: str
) -> None:
    turn_to(url, tmp_path, monkeypatch)
    refused(5, "inspect", "user/lcm")


def test_offline_mode(hub: Hub, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, so the Hub was not asked" in refused(5, "inspect", "user/lcm")
    assert hub.requests == []


def test_our_own_disk_is_not_the_network(cache: Path, refused: Callable[..., str]) -> None:
    cache.write_text("a file where the cache should be")
    message = refused(1, "inspect", "user/lcm")
    assert str(cache) in message
