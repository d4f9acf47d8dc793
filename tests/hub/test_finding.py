"""LoRAs on the Hub that fit a base."""

from __future__ import annotations

import time

import pytest

from lorahub.errors import NetworkError
from lorahub.hub.finding import search
from tests.hub import faults
from tests.hub.server import Hub

SDXL, TURBO = "stabilityai/stable-diffusion-xl-base-1.0", "stabilityai/sdxl-turbo"


def card(base: str, *tags: str, relation: str = "adapter", **more: str) -> bytes:
    extra = "".join(f"{key}: {value}\n" for key, value in more.items())
    return f"---\ntags: [{', '.join(tags)}]\nbase_model: {base}\nbase_model_relation: {relation}\n{extra}---\n".encode()


@pytest.fixture(autouse=True)
def _repositories(hub: Hub) -> None:
    for name, downloads, readme in (
        ("org/papercut", 9, card(SDXL, "lora", license="mit", instance_prompt="papercut")),
        ("org/papercut-turbo", 20, card(TURBO, "lora")),
        ("org/papercut-sd", 30, card("runwayml/stable-diffusion-v1-5", "lora")),
        ("org/papercut-llm", 40, card("meta/llama", "lora")),
        ("org/papercut-model", 50, card(SDXL, "diffusers", relation="finetune")),
        ("org/sketch", 60, card(SDXL, "lora")),
    ):
        hub.repo(name, {"README.md": readme}, downloads=downloads)


def test_all_repositories_that_a_base_is_known_by_are_asked_for() -> None:
    found = search("papercut", base="sdxl")
    assert [(hit.repo, hit.base, hit.downloads) for hit in found] == [
        ("org/papercut-turbo", "sdxl", 20),
        ("org/papercut", "sdxl", 9),
    ]
    assert (found[1].base_model, found[1].licence, found[1].trigger_words) == (SDXL, "mit", "papercut")


def test_without_a_base() -> None:
    found = {hit.repo: hit.base for hit in search("papercut")}
    assert found == {
        "org/papercut-llm": None, "org/papercut-sd": "sd15", "org/papercut-turbo": "sdxl", "org/papercut": "sdxl",
    }  # fmt: skip


def test_a_limit() -> None:
    assert [hit.repo for hit in search("", base="sdxl", limit=2)] == ["org/sketch", "org/papercut-turbo"]


def test_a_hub_that_is_ill(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    sleep = time.sleep
    monkeypatch.setattr("time.sleep", lambda seconds: sleep(min(seconds, 0.01)))  # between the client's own attempts
    hub.fail("GET /api/models", faults.status(503), times=1000)
    with pytest.raises(NetworkError, match="search: the Hub answered 503"):
        search("papercut")
