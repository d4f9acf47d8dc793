"""Adapters from the Hub, with the real client against a real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

import lorahub as lh
from lorahub import errors
from lorahub.algebra.recipe import Source
from lorahub.hub.fetch import fetch
from tests.cli import adapters
from tests.hub import faults, server
from tests.hub.server import Hub

WEIGHTS = "pytorch_lora_weights.safetensors"


def first_layer(adapter: lh.Adapter) -> list[float]:
    return [float(value) for value in next(iter(adapter.layers.values())).dense()[range(4), range(4)]]


@pytest.fixture
def peft(tmp_path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in adapters.peft_folder(tmp_path).iterdir()}


def test_a_repository_with_one_adapter(hub: Hub, lcm: bytes) -> None:
    hub.repo("user/lcm", {"README.md": b"# LCM", WEIGHTS: lcm, "notes.txt": b""})
    adapter = lh.load("user/lcm")
    assert first_layer(adapter) == pytest.approx([1, 0, 2, 0.5])
    assert adapter.base == "sd15"
    assert isinstance(adapter.recipe, Source)
    assert adapter.recipe.name.startswith("user/lcm")


def test_only_the_adapter_is_transferred_and_by_commit(hub: Hub, lcm: bytes) -> None:
    repo = hub.repo("user/lcm", {"README.md": b"# LCM", "style.safetensors": lcm, "big.ckpt": bytes(10)})
    with hub.recorded() as asked:
        fetch("user/lcm")
    path = f"/user/lcm/resolve/{repo.branches['main']}/style.safetensors"
    assert asked == ["GET /api/models/user/lcm", f"HEAD {path}", f"GET {path}"]


def test_a_second_load_transfers_no_file(hub: Hub, lcm: bytes) -> None:
    hub.repo("user/lcm", {WEIGHTS: lcm})
    fetch("user/lcm")
    with hub.recorded() as asked:
        assert fetch("user/lcm").read_bytes() == lcm
    assert asked == ["GET /api/models/user/lcm"]


def test_revisions(hub: Hub, style: bytes, lcm: bytes) -> None:
    repo = hub.repo("user/lora", {WEIGHTS: style})
    old = repo.branches["main"]
    repo.tags["v1"] = old
    new = repo.commit({WEIGHTS: lcm})
    repo.pull_requests["refs/pr/2"] = old
    for revision in ("v1", old, "refs/pr/2"):
        assert first_layer(lh.load(f"user/lora@{revision}")) == pytest.approx([2, 1, 0, 0])
    for reference in ("user/lora", f"user/lora@{new}", "user/lora@main"):
        assert first_layer(lh.load(reference)) == pytest.approx([1, 0, 2, 0.5])


def test_a_branch_that_moved_is_followed(hub: Hub, style: bytes, lcm: bytes) -> None:
    repo = hub.repo("user/lora", {WEIGHTS: style})
    assert first_layer(lh.load("user/lora")) == pytest.approx([2, 1, 0, 0])
    repo.commit({WEIGHTS: lcm})
    assert first_layer(lh.load("user/lora")) == pytest.approx([1, 0, 2, 0.5])


def test_a_file_may_be_named(hub: Hub, style: bytes, lcm: bytes) -> None:
    hub.repo("user/many", {"a/style.safetensors": style, "lcm v2.safetensors": lcm})
    assert first_layer(lh.load("user/many:a/style.safetensors")) == pytest.approx([2, 1, 0, 0])
    assert first_layer(lh.load("user/many@main:lcm v2.safetensors")) == pytest.approx([1, 0, 2, 0.5])


def test_several_files_are_listed_instead_of_guessed(hub: Hub, style: bytes, refused: Callable[..., str]) -> None:
    hub.repo("user/many", {f"{name}.safetensors": style for name in "abcdefg"})
    message = refused(2, "inspect", "user/many@main")
    assert message == (
        "user/many@main holds 7 adapters (a.safetensors, b.safetensors, c.safetensors, d.safetensors, e.safetensors, "
        "...): name one, such as user/many@main:a.safetensors"
    )


def test_the_usual_name_wins(hub: Hub, style: bytes, lcm: bytes) -> None:
    hub.repo("user/many", {"a.safetensors": style, WEIGHTS: lcm})
    assert fetch("user/many").read_bytes() == lcm


def test_peft_comes_with_its_configuration(hub: Hub, peft: dict[str, bytes]) -> None:
    hub.repo("user/peft", peft)
    assert first_layer(lh.load("user/peft")) == pytest.approx([1, 0, 2, 0.5])  # half of it without lora_alpha
    hub.repo("user/deep", {f"unet/{name}": content for name, content in peft.items()})
    assert first_layer(lh.load("user/deep:unet/adapter_model.safetensors")) == pytest.approx([1, 0, 2, 0.5])


def test_wrong_bytes_of_the_right_size_are_fetched_again(hub: Hub, lcm: bytes) -> None:
    hub.repo("user/lcm", {WEIGHTS: lcm})
    hub.fail("GET /user/lcm/resolve", faults.corrupted)
    with hub.recorded() as asked:
        assert fetch("user/lcm").read_bytes() == lcm
    assert [line.split("/")[0] for line in asked].count("GET ") == 3  # the facts, and the file twice


def test_bytes_that_stay_wrong_are_refused_and_not_kept(
    hub: Hub, lcm: bytes, cache: Path, refused: Callable[..., str]
) -> None:
    hub.repo("user/lcm", {WEIGHTS: lcm})
    hub.fail("GET /user/lcm/resolve", faults.corrupted, times=2)
    message = refused(7, "inspect", "user/lcm")
    assert message == f"user/lcm: {WEIGHTS} was downloaded twice and does not have the hash the Hub announces"
    assert [path for path in cache.rglob("*.safetensors") if path.is_symlink() or path.exists()] == []
    assert [path for path in cache.rglob("blobs/*") if path.is_file()] == []
    assert fetch("user/lcm").read_bytes() == lcm  # the Hub is well again


def test_a_configuration_with_wrong_bytes_is_refused_too(hub: Hub, peft: dict[str, bytes]) -> None:
    hub.repo("user/peft", peft)
    hub.fail("GET .*adapter_config.json", faults.corrupted, times=2)
    with pytest.raises(errors.VerificationError, match=r"adapter_config\.json was downloaded twice"):
        fetch("user/peft")


def test_a_cached_file_that_rotted_is_fetched_again(hub: Hub, lcm: bytes) -> None:
    hub.repo("user/lcm", {WEIGHTS: lcm})
    path = fetch("user/lcm")
    path.resolve().chmod(0o644)
    path.resolve().write_bytes(lcm[:-1] + b"x")
    assert fetch("user/lcm").read_bytes() == lcm


def test_a_connection_that_breaks_is_resumed(hub: Hub, lcm: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)  # what the client writes, and resumes from
    hub.repo("user/lcm", {WEIGHTS: lcm})
    hub.fail("GET /user/lcm/resolve", faults.cut_off)
    assert fetch("user/lcm").read_bytes() == lcm
    assert hub.requests[-1].range == f"bytes={len(lcm) // 2 // 1024 * 1024}-"


def test_private_repositories_need_the_token(hub: Hub, lcm: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repo("user/secret", {WEIGHTS: lcm}, private=True)
    with pytest.raises(errors.NotFoundError, match="private and needs HF_TOKEN"):
        fetch("user/secret")
    monkeypatch.setenv("HF_TOKEN", server.TOKEN)
    assert fetch("user/secret").read_bytes() == lcm
    assert {asked.token for asked in hub.requests[1:]} == {server.TOKEN}


def test_a_repository_that_moved_is_followed(hub: Hub, lcm: bytes) -> None:
    hub.repo("user/new", {WEIGHTS: lcm})
    hub.moved["user/old"] = "user/new"
    assert fetch("user/old").read_bytes() == lcm


def test_a_local_path_wins(hub: Hub, style: bytes, lcm: bytes) -> None:
    hub.repo("user/lora", {WEIGHTS: lcm})
    Path("user").mkdir()
    Path("user/lora").write_bytes(style)
    assert first_layer(lh.load("user/lora")) == pytest.approx([2, 1, 0, 0])
    assert hub.requests == []


def test_combine_takes_hub_names_and_records_them(hub: Hub, style: bytes, lcm: bytes) -> None:
    hub.repo("user/lcm", {WEIGHTS: lcm})
    Path("style.safetensors").write_bytes(style)
    saved = lh.save(lh.combine("0.5*style.safetensors + user/lcm"), "fast.safetensors")
    assert adapters.diagonals(saved.path)[0] == pytest.approx([2, 0.5, 2, 0.5, 0], abs=2e-3)
    made = lh.inspect("fast.safetensors")[0].provenance
    assert made is not None
    assert [parent["name"].partition("@")[0] for parent in json.loads(json.dumps(made))["parents"]] == [
        "style",
        "user/lcm",
    ]
