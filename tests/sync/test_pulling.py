"""What a pull brings, from our repositories and from any other, and what it refuses before a byte of weights moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorahub.errors import (
    BaseMismatchError,
    ConflictError,
    FileFormatError,
    NotFoundError,
    UsageError,
    VerificationError,
)
from lorahub.loading import load
from lorahub.sync import pull, push
from lorahub.workspace.opening import Catalogue
from tests.cli import adapters
from tests.hub.server import Hub
from tests.sync.conftest import WEIGHTS, add, asked_for_bytes
from tests.workspace.conftest import write_adapter

CARD = b"""---
license: other
license_name: my-licence
base_model: stabilityai/stable-diffusion-xl-base-1.0
instance_prompt: papercut
---
# Somebody's
"""


@pytest.fixture
def style(tmp_path: Path) -> bytes:
    return write_adapter(tmp_path / "x" / "style.safetensors", seed=1).read_bytes()


def weights(asked: list[str]) -> list[str]:
    return [line for line in asked if line.startswith("GET") and line.endswith(".safetensors")]


def test_what_was_pushed_comes_back_whole(hub: Hub, mine: Catalogue, theirs: Catalogue) -> None:
    add(mine, "style", seed=1)
    mine.edit("style", licence="mit", trigger_words=["cut"], kind="style", run={"steps": 4})
    mine.tag("style", "warm")
    sent = mine.get("style")
    commit = push(mine, "style", to="user/style-lora").commit
    done = pull(theirs, "user/style-lora")
    came = theirs.get("style")
    assert (done.reference, done.outcome, done.downloaded, done.branch) == ("style:1", "new", True, "main")
    assert came.file_sha256 == sent.file_sha256 == done.sha256
    for field in ("licence", "trigger_words", "kind", "run", "tags", "base"):
        assert getattr(came, field) == getattr(sent, field), field
    assert came.source == {"repo": "user/style-lora", "commit": commit, "path": WEIGHTS, "sha256": sent.file_sha256}
    assert came.stored
    theirs.registry.blobs.verify(came.file_sha256)


def test_the_header_is_enough_to_refuse_a_wrong_base(hub: Hub, mine: Catalogue, style: bytes) -> None:
    hub.repo("org/style", {WEIGHTS: style})
    with hub.recorded() as asked, pytest.raises(BaseMismatchError, match="org/style is for sd15, not for sdxl"):
        pull(mine, "org/style", base="sdxl")
    ranges = [each.range for each in hub.requests if each.path.endswith(WEIGHTS)]
    assert ranges == ["bytes=0-100000"]
    assert len(asked) == 2
    assert mine.registry.find() == ()
    assert pull(mine, "org/style", base="sd15").base == "sd15"


def test_any_repository(hub: Hub, mine: Catalogue, style: bytes) -> None:
    hub.repo("org/papercut-style", {"README.md": CARD, "papercut.safetensors": style})
    done = pull(mine, "org/papercut-style")
    record = mine.get("papercut-style")
    assert done.path == "papercut.safetensors"
    assert (record.licence, record.trigger_words) == ("my-licence", ("papercut",))
    assert (record.base, record.base_declared) == ("sd15", "sdxl")


def test_an_accelerator_is_known_by_its_repository(hub: Hub, mine: Catalogue, style: bytes) -> None:
    hub.repo("latent-consistency/lcm-lora-sdv1-5", {WEIGHTS: style})
    pull(mine, "latent-consistency/lcm-lora-sdv1-5")
    record = mine.get("lcm-lora-sdv1-5")
    assert record.kind == "acceleration"
    assert record.run is not None
    assert record.run.scheduler == "LCMScheduler"


def test_several_files(hub: Hub, mine: Catalogue, style: bytes) -> None:
    other = write_adapter(Path("o.safetensors"), seed=2).read_bytes()
    hub.repo("org/many", {"a.safetensors": style, "b.safetensors": other})
    with pytest.raises(UsageError, match=r"holds 2 adapters \(a.safetensors, b.safetensors\)"):
        pull(mine, "org/many")
    assert pull(mine, "org/many", file="a.safetensors").reference == "a:1"
    assert pull(mine, "org/many:b.safetensors", name="second").reference == "second:1"
    assert set(mine.registry.remotes()) == {"a", "second"}


def test_a_peft_folder_becomes_one_file_with_the_same_vector(hub: Hub, mine: Catalogue, tmp_path: Path) -> None:
    folder = adapters.peft_folder(tmp_path)
    hub.repo("org/peft", {file.name: file.read_bytes() for file in folder.iterdir()})
    done = pull(mine, "org/peft")
    record = mine.get("peft")
    assert record.file_sha256 != done.sha256
    assert record.kind == "other"
    entries = [float(v) for v in next(iter(load("peft").layers.values())).dense()[range(4), range(4)]]
    assert entries == pytest.approx([1, 0, 2, 0.5])
    with pytest.raises(UsageError, match="PEFT folder, which is not written"):
        push(mine, "peft")
    again = pull(mine, "org/peft")
    assert (again.outcome, again.reference) == ("known", "peft:1")


def test_a_second_pull_downloads_nothing(hub: Hub, mine: Catalogue, style: bytes) -> None:
    hub.repo("org/style", {WEIGHTS: style})
    pull(mine, "org/style")
    with hub.recorded() as asked:
        done = pull(mine, "org/style")
    assert (done.outcome, done.downloaded, done.reference) == ("known", False, "style:1")
    assert len(weights(asked)) == 1  # its header
    assert not [line for line in asked if line.startswith("HEAD")]


def test_a_new_commit_is_a_new_version(hub: Hub, mine: Catalogue, style: bytes) -> None:
    repo = hub.repo("org/style", {WEIGHTS: style})
    pull(mine, "org/style", name="mine")
    repo.change({WEIGHTS: write_adapter(Path("o.safetensors"), seed=2).read_bytes()})
    done = pull(mine, "org/style")
    assert (done.reference, done.outcome) == ("mine:2", "updated")


def test_pinned(hub: Hub, mine: Catalogue, style: bytes) -> None:
    repo = hub.repo("org/style", {WEIGHTS: style})
    first = repo.branches["main"]
    repo.tags["v1"] = first
    repo.change({WEIGHTS: write_adapter(Path("o.safetensors"), seed=2).read_bytes()})
    for revision, name in (("v1", "tagged"), (first, "commit")):
        done = pull(mine, f"org/style@{revision}", name=name)
        assert (done.branch, done.commit) == (None, first)
    assert mine.registry.remotes() == {}
    assert pull(mine, "org/style@main", name="followed").branch == "main"
    assert pull(mine, "org/style").reference == "followed:1"
    mine.rename("followed", "style")
    with pytest.raises(ConflictError, match="style is another adapter here"):  # no next version of what is followed
        pull(mine, "org/style@v1")


def test_a_name_that_is_taken(hub: Hub, mine: Catalogue, style: bytes) -> None:
    add(mine, "style", seed=5)
    hub.repo("org/style", {WEIGHTS: style})
    with pytest.raises(ConflictError, match="style is another adapter here: call this one otherwise with --name"):
        pull(mine, "org/style")
    assert pull(mine, "org/style", name="theirs").reference == "theirs:1"


def test_changes_here_are_not_buried(hub: Hub, mine: Catalogue, style: bytes) -> None:
    repo = hub.repo("user/style", {WEIGHTS: style})
    pull(mine, "user/style")
    add(mine, "style", seed=7)
    with pytest.raises(ConflictError, match="was not pushed yet"):
        pull(mine, "user/style")
    repo.change({WEIGHTS: write_adapter(Path("o.safetensors"), seed=2).read_bytes()})
    with pytest.raises(ConflictError, match="style was changed here and in user/style"):
        pull(mine, "user/style")
    assert pull(mine, "user/style", force=True).reference == "style:3"


def test_a_dry_run(hub: Hub, mine: Catalogue, style: bytes) -> None:
    hub.repo("org/style", {WEIGHTS: style})
    with hub.recorded() as asked:
        done = pull(mine, "org/style", dry_run=True)
    assert (done.reference, done.outcome, done.base, done.size) == ("style", "new", "sd15", len(style))
    assert asked_for_bytes(asked) == [weights(asked)[0]]
    assert mine.registry.find() == ()


@pytest.mark.parametrize(
    ("files", "error", "said"),
    [
        ({"model.bin": b"x"}, NotFoundError, "holds no .safetensors file; it holds model.bin"),
        ({WEIGHTS: b"x" * 100}, FileFormatError, "is no safetensors file"),
        ({WEIGHTS: b""}, FileFormatError, "is no safetensors file"),
        ({WEIGHTS: b"\xff" * 8 + b"{" * 100}, FileFormatError, "is no safetensors file"),
        ({WEIGHTS: b"<html>" * 20}, FileFormatError, "is no safetensors file"),
    ],
)
def test_what_is_no_adapter(
    hub: Hub, mine: Catalogue, files: dict[str, bytes], error: type[Exception], said: str
) -> None:
    hub.repo("org/style", files)
    with pytest.raises(error, match=said):
        pull(mine, "org/style")


def test_a_pickle_is_not_pulled(hub: Hub, mine: Catalogue) -> None:
    hub.repo("org/style", {"lora.bin": b"\x80"})
    with pytest.raises(FileFormatError, match="a Python pickle, which can run code"):
        pull(mine, "org/style", file="lora.bin")


def test_a_whole_checkpoint_is_no_adapter(hub: Hub, mine: Catalogue, tmp_path: Path) -> None:
    content = adapters.write(tmp_path / "m.safetensors", {"model.weight": adapters.np.zeros((2, 2))}).read_bytes()
    hub.repo("org/model", {"model.safetensors": content})
    with pytest.raises(FileFormatError, match="no adapter layers that lorahub knows: nothing was downloaded"):
        pull(mine, "org/model")


@pytest.mark.parametrize(
    "name", ["nul.safetensors", "a/con.txt.safetensors", "x:stream.safetensors", "a\\b.safetensors", "a\x1b[31m.safetensors",
             "../x.safetensors", "/x.safetensors", "a//b.safetensors", "x. /y.safetensors", "é" * 200 + ".safetensors"]
)  # fmt: skip
def test_hostile_file_names(hub: Hub, mine: Catalogue, style: bytes, name: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*.safetensors"))
    hub.repo("org/style", {name: style})
    with pytest.raises(VerificationError, match="a name that is not safe to write"):
        pull(mine, "org/style")
    assert sorted(tmp_path.rglob("*.safetensors")) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda told: "not json", "cannot be read"),
        (lambda told: told | {"schema": 2}, "schema 2"),
        (lambda told: told | {"surprise": 1}, "unknown field"),
        (lambda told: told | {"said": {"kind": "spell"}}, ""),
    ],
)
def test_a_record_that_cannot_be_read_costs_only_itself(
    hub: Hub, mine: Catalogue, theirs: Catalogue, change: Any, said: str
) -> None:
    add(mine, "style", seed=1)
    push(mine, "style", to="user/style")
    repo = hub.repos["user/style"]
    told = change(json.loads(repo.files()["lorahub.json"].content))
    repo.change({"lorahub.json": json.dumps(told).encode()})
    if said:
        done = pull(theirs, "user/style")
        assert said in done.notes[0]
        assert theirs.get("style").file_sha256 == mine.get("style").file_sha256
    else:  # readable, but it says what cannot be said: all or nothing
        with pytest.raises(UsageError, match="expected a kind"):
            pull(theirs, "user/style")
        assert theirs.registry.find() == ()


def test_a_record_of_other_weights_brings_no_lineage(hub: Hub, mine: Catalogue, theirs: Catalogue) -> None:
    add(mine, "style", seed=1)
    mine.edit("style", licence="mit")
    push(mine, "style", to="user/style")
    hub.repos["user/style"].change({WEIGHTS: write_adapter(Path("o.safetensors"), seed=9).read_bytes()})
    done = pull(theirs, "user/style")
    assert "weights were changed since lorahub.json was written" in done.notes[0]
    assert theirs.get("style").licence == "mit"
