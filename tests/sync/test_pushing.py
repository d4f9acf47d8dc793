"""What a push puts on the Hub, what it leaves alone there, and that it sends nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from lorahub.errors import AuthError, ConflictError, NotFoundError, UsageError, VerificationError
from lorahub.sync import push, status, sync
from lorahub.workspace.opening import Catalogue
from registry import Validation
from tests.hub import server, storage, writing
from tests.hub.server import Hub
from tests.sync.conftest import WEIGHTS, add, asked_for_bytes


def test_a_first_push(hub: Hub, mine: Catalogue) -> None:
    record = add(mine, "style", seed=1)
    done = push(mine, "style", to="user/style", private=True, tag="v1")
    repo = hub.repos["user/style"]
    assert (done.outcome, done.created, done.commit) == ("pushed", True, repo.branches["main"])
    assert done.sent == (WEIGHTS, "lorahub.json", "README.md")
    assert repo.private
    assert repo.tags == {"v1": done.commit}
    assert repo.files()[WEIGHTS].sha256 == record.file_sha256
    assert [each.title for each in repo.history("main")] == ["style:1 by lorahub", "initial commit"]
    known = mine.registry.remote("style")
    assert known is not None
    assert (known.repo, known.branch, known.path, known.commit) == ("user/style", "main", WEIGHTS, done.commit)


def test_nothing_is_sent_twice(hub: Hub, mine: Catalogue) -> None:
    add(mine, "style", seed=1)
    first = push(mine, "style", to="user/style")
    with hub.recorded() as asked:
        again = push(mine, "style")
    assert (again.outcome, again.commit, again.sent) == ("unchanged", first.commit, ())
    assert asked == ["GET /api/models/user/style/revision/main"]


def test_the_same_file_is_not_sent_again_when_only_its_record_changed(hub: Hub, mine: Catalogue) -> None:
    add(mine, "style", seed=1)
    push(mine, "style", to="user/style")
    mine.edit("style", licence="mit")
    with hub.recorded() as asked:
        assert push(mine, "style").sent == ("lorahub.json", "README.md")
    assert not [line for line in asked if "lfs" in line]


def test_the_record(hub: Hub, mine: Catalogue, tmp_path: Path) -> None:
    add(mine, "style", seed=1)
    mine.edit("style", licence="cc-by-4.0", trigger_words=["papercut"], notes="for my eyes only", kind="style")
    mine.tag("style", "warm")
    mine.registry.record_validations("style", [Validation(check="clip", severity="ok", message="0.31", tool="t")])
    push(mine, "style", to="user/style")
    content = hub.repos["user/style"].files()["lorahub.json"].content
    told = json.loads(content)
    assert told["said"] == {
        "base": "sd15", "kind": "style", "licence": "cc-by-4.0", "trigger_words": ["papercut"], "run": None,
        "tags": ["warm"],
    }  # fmt: skip
    assert told["file"]["sha256"] == mine.get("style").file_sha256
    assert {"check": "clip", "severity": "ok", "message": "0.31", "layer": None, "tool": "t"} in told["validations"]
    assert b"for my eyes only" not in content
    assert str(tmp_path).encode() not in content


def test_a_hub_that_keeps_a_small_file_in_git(hub: Hub, mine: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "LARGE", ())
    add(mine, "style", seed=1)
    push(mine, "style", to="user/style")
    with hub.recorded() as asked:
        assert push(mine, "style").outcome == "unchanged"
        assert status(mine)[0].status == "same"
    assert len(asked) == 2
    add(mine, "style", seed=2)
    assert status(mine)[0].status == "ahead"
    assert sync(mine, ["style"])[0].action == "push"
    hub.repos["user/style"].change({WEIGHTS: b"somebody else's"})
    assert status(mine)[0].status == "behind"


def test_what_others_wrote_is_not_replaced(hub: Hub, mine: Catalogue) -> None:
    add(mine, "style", seed=1)
    push(mine, "style", to="user/style")
    repo = hub.repos["user/style"]
    repo.change({WEIGHTS: b"somebody else's"})
    head = repo.branches["main"]
    with pytest.raises(ConflictError, match=r"user/style holds another adapter .*: run `lorahub sync style`"):
        push(mine, "style")
    assert repo.branches["main"] == head
    push(mine, "style", force=True)
    assert repo.files()[WEIGHTS].sha256 == mine.get("style").file_sha256
    repo.change({"lorahub.json": b"{}"})
    with pytest.raises(ConflictError, match=r"says something else of the adapter \(lorahub.json\)"):
        push(mine, "style")


def test_a_repository_that_holds_something_else_already(hub: Hub, mine: Catalogue) -> None:
    add(mine, "style", seed=1)
    hub.repo("user/style", {WEIGHTS: b"x" * 100})
    with pytest.raises(ConflictError, match="holds another adapter"):
        push(mine, "style", to="user/style")
    assert mine.registry.remote("style") is None


def test_an_older_version_there_is_replaced(hub: Hub, mine: Catalogue) -> None:
    add(mine, "style", seed=1)
    push(mine, "style", to="user/style")
    add(mine, "style", seed=2)
    mine.registry.forget_remote("style")
    hub.repos["user/style"].commit({WEIGHTS: hub.repos["user/style"].files()[WEIGHTS]})
    assert push(mine, "style", to="user/style").outcome == "pushed"


def test_a_card_that_was_edited_is_kept(hub: Hub, mine: Catalogue) -> None:
    add(mine, "style", seed=1)
    push(mine, "style", to="user/style")
    repo = hub.repos["user/style"]
    edited = repo.files()["README.md"].content.replace(b"# style", b"# My style")
    repo.change({"README.md": edited})
    mine.edit("style", licence="mit")
    done = push(mine, "style")
    assert (done.sent, done.kept) == (("lorahub.json",), ("README.md",))
    assert repo.files()["README.md"].content == edited
    assert push(mine, "style", force=True).sent == ("README.md",)
    assert b"license: mit" in repo.files()["README.md"].content


def test_previews_travel(hub: Hub, mine: Catalogue, tmp_path: Path) -> None:
    from tests.workspace.conftest import write_adapter

    path = write_adapter(tmp_path / "style.safetensors", seed=1)
    Image.new("RGB", (8, 8)).save(tmp_path / "style.png")
    mine.add([path])
    assert "images/preview-1.png" in push(mine, "style", to="user/style").sent
    assert hub.repos["user/style"].card["widget"] == [{"text": "-", "output": {"url": "images/preview-1.png"}}]


def test_branches_and_tags(hub: Hub, mine: Catalogue) -> None:
    add(mine, "style", seed=1)
    push(mine, "style", to="user/style", tag="v1")
    repo = hub.repos["user/style"]
    first = repo.branches["main"]
    add(mine, "style", seed=2)
    done = push(mine, "style", revision="next")
    assert (repo.branches["main"], repo.branches["next"]) == (first, done.commit)
    assert push(mine, "style", tag="v2").outcome == "unchanged"
    assert repo.tags == {"v1": first, "v2": done.commit}
    with pytest.raises(ConflictError, match="has a tag v1 on another commit"):
        push(mine, "style", tag="v1")


def test_a_pull_request(hub: Hub, mine: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    add(mine, "style", seed=1)
    push(mine, "style", to="user/style")
    before = mine.registry.remote("style")
    add(mine, "style", seed=2)
    monkeypatch.setenv("HF_TOKEN", server.STRANGER)
    done = push(mine, "style", pr=True)
    assert (done.outcome, done.pull_request) == ("proposed", f"{hub.url}/user/style/discussions/1")
    repo = hub.repos["user/style"]
    assert repo.files("refs/pr/1")[WEIGHTS].sha256 == mine.get("style").file_sha256
    assert repo.files()[WEIGHTS].sha256 != mine.get("style").file_sha256
    assert mine.registry.remote("style") == before


def test_a_dry_run_sends_and_remembers_nothing(hub: Hub, mine: Catalogue) -> None:
    add(mine, "style", seed=1)
    with hub.recorded() as asked:
        done = push(mine, "style", to="user/style", dry_run=True)
    assert (done.outcome, done.commit, len(done.sent)) == ("pushed", None, 3)
    assert asked_for_bytes(asked) == []
    assert mine.registry.remotes() == {}


def test_what_cannot_be_pushed(hub: Hub, mine: Catalogue) -> None:
    record = add(mine, "style", seed=1)
    with pytest.raises(UsageError, match="--to USER/REPO"):
        push(mine, "style")
    with pytest.raises(NotFoundError):
        push(mine, "nobody", to="user/style")
    with pytest.raises(UsageError, match="expected --to"):
        push(mine, "style", to="user/style:x.safetensors")
    hub.repo("user/public")
    with pytest.raises(ConflictError, match="exists and is public"):
        push(mine, "style", to="user/public", private=True)
    blob = mine.registry.blobs.path(record.file_sha256)
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    with pytest.raises(VerificationError, match="run `lorahub verify style`"):
        push(mine, "style", to="user/style")
    assert "user/style" not in hub.repos


def test_a_card_that_the_hub_refuses(hub: Hub, mine: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    add(mine, "style", seed=1)
    mine.edit("style", licence="mit")
    monkeypatch.setattr(writing, "LICENCES", {"other"})
    with pytest.raises(UsageError, match=r'user/style: the Hub refuses the card: - "license" must be one of \[other\]'):
        push(mine, "style", to="user/style")
    mine.edit("style", licence="something else")
    assert push(mine, "style", to="user/style").outcome == "pushed"


@pytest.mark.parametrize(
    ("token", "to", "said"),
    [
        (None, "user/style", "the token is missing or not valid"),
        ("hf_stale", "user/style", "the token is missing or not valid"),
        (server.READER, "user/style", "the token may not do this"),
        (server.TOKEN, "other/style", "the token may not do this"),
    ],
)
def test_who_may_not_push(
    hub: Hub, mine: Catalogue, monkeypatch: pytest.MonkeyPatch, token: str | None, to: str, said: str
) -> None:
    add(mine, "style", seed=1)
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(AuthError, match=said):
        push(mine, "style", to=to)
    hub.repo("other/style" if to.startswith("other") else to)
    with pytest.raises(AuthError, match=said):
        push(mine, "style", to=to)
    assert mine.registry.remotes() == {}


def test_a_repository_that_was_renamed(hub: Hub, mine: Catalogue) -> None:
    add(mine, "style", seed=1)
    push(mine, "style", to="user/old")
    hub.move("user/old", "user/new")
    mine.edit("style", licence="mit")
    assert push(mine, "style").repo == "user/new"
    known = mine.registry.remote("style")
    assert known is not None
    assert known.repo == "user/new"
