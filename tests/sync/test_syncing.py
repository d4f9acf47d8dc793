"""Status and sync: every way in which the two sides can differ, and who wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorahub.errors import ConflictError, NetworkError, NotFoundError, UsageError
from lorahub.sync import pull, push, status, sync
from lorahub.sync.syncing import Synced
from lorahub.workspace.opening import Catalogue
from tests.hub import server
from tests.hub.server import Hub
from tests.hub.storage import Repo
from tests.sync.conftest import WEIGHTS, add, asked_for_bytes
from tests.workspace.conftest import write_adapter


@pytest.fixture
def repo(hub: Hub, mine: Catalogue, theirs: Catalogue) -> Repo:
    """`style`, alike here, there, and in somebody else's registry."""
    add(mine, "style", seed=1)
    push(mine, "style", to="user/style")
    pull(theirs, "user/style")
    return hub.repos["user/style"]


def only(done: tuple[Synced, ...]) -> Synced:
    assert len(done) == 1
    return done[0]


def seen(workspace: Catalogue) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    found = status(workspace, ["style"])[0]
    return found.status, found.here, found.there


def test_alike(hub: Hub, repo: Repo, mine: Catalogue) -> None:
    with hub.recorded() as asked:
        assert seen(mine) == ("same", (), ())
        assert only(sync(mine, ["Style"])).action == "none"
    assert set(asked) == {"GET /api/models/user/style/revision/main"}


def test_changed_here(repo: Repo, mine: Catalogue, theirs: Catalogue) -> None:
    add(mine, "style", seed=2)
    mine.edit("style", licence="mit")
    assert seen(mine) == ("ahead", ("weights", "record"), ())
    assert only(sync(mine, ["style"])).action == "push"
    assert repo.files()[WEIGHTS].sha256 == mine.get("style").file_sha256
    assert seen(mine) == ("same", (), ())
    assert seen(theirs) == ("behind", (), ("weights", "record"))
    done = only(sync(theirs, all=True))
    assert (done.action, done.pushed) == ("pull", None)
    assert (theirs.get("style").number, theirs.get("style").licence) == (2, "mit")
    assert theirs.get("style").file_sha256 == mine.get("style").file_sha256


def test_what_is_said_is_merged_field_by_field(repo: Repo, mine: Catalogue, theirs: Catalogue) -> None:
    mine.edit("style", licence="mit")
    mine.tag("style", "warm")
    theirs.edit("style", kind="style")
    theirs.tag("style", "paper")
    sync(mine, ["style"])
    assert seen(theirs) == ("diverged", ("record",), ("record",))
    assert only(sync(theirs, ["style"])).action == "merge"
    sync(mine, ["style"])
    for side in (mine, theirs):
        record = side.get("style")
        assert (record.licence, record.kind, record.tags) == ("mit", "style", ("paper", "warm"))
        assert seen(side)[0] == "same"


def test_weights_there_and_words_here(repo: Repo, mine: Catalogue, theirs: Catalogue) -> None:
    add(mine, "style", seed=2)
    sync(mine, ["style"])
    theirs.edit("style", trigger_words=["cut"])
    done = only(sync(theirs, ["style"]))
    assert done.action == "pull"
    assert done.pushed is not None
    assert set(done.pushed.sent) == {"lorahub.json", "README.md"}
    sync(mine, ["style"])
    assert mine.get("style").trigger_words == theirs.get("style").trigger_words == ("cut",)
    assert mine.get("style").file_sha256 == theirs.get("style").file_sha256


@pytest.fixture
def contradiction(repo: Repo, mine: Catalogue, theirs: Catalogue) -> Repo:
    """Both changed the weights and the licence; mine is on the Hub."""
    add(mine, "style", seed=2)
    mine.edit("style", licence="mit")
    sync(mine, ["style"])
    add(theirs, "style", seed=3)
    theirs.edit("style", licence="bsd-3-clause")
    return repo


def test_a_conflict_changes_nothing(contradiction: Repo, theirs: Catalogue) -> None:
    head = contradiction.branches["main"]
    assert seen(theirs) == ("diverged", ("weights", "record"), ("weights", "record"))
    done = only(sync(theirs, ["style"]))
    assert (done.action, done.conflicts) == ("conflict", ("weights", "licence"))
    assert "--ours, --theirs or --pr" in done.reason
    assert contradiction.branches["main"] == head
    assert theirs.get("style").licence == "bsd-3-clause"


def test_ours_wins(contradiction: Repo, mine: Catalogue, theirs: Catalogue) -> None:
    kept = theirs.get("style").file_sha256
    assert only(sync(theirs, ["style"], prefer="ours")).action == "push"
    assert contradiction.files()[WEIGHTS].sha256 == theirs.get("style").file_sha256 == kept
    assert seen(theirs)[0] == "same"
    sync(mine, ["style"])
    assert (mine.get("style").file_sha256, mine.get("style").licence) == (kept, "bsd-3-clause")


def test_theirs_wins(contradiction: Repo, mine: Catalogue, theirs: Catalogue) -> None:
    head = contradiction.branches["main"]
    assert only(sync(theirs, ["style"], prefer="theirs")).action == "pull"
    assert (theirs.get("style").licence, theirs.get("style").number) == ("mit", 3)
    assert theirs.get("style").file_sha256 == mine.get("style").file_sha256
    assert contradiction.branches["main"] == head
    assert seen(theirs)[0] == "same"


def test_ours_is_proposed(contradiction: Repo, theirs: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", server.STRANGER)
    done = only(sync(theirs, ["style"], prefer="pr"))
    assert done.action == "propose"
    assert contradiction.files("refs/pr/1")[WEIGHTS].sha256 == theirs.get("style").file_sha256
    assert seen(theirs)[0] == "diverged"
    contradiction.branches["main"] = contradiction.pull_requests["refs/pr/1"]  # merged on the website
    sync(theirs, ["style"])
    assert seen(theirs)[0] == "same"


def test_a_card_edited_there_is_no_change(repo: Repo, mine: Catalogue) -> None:
    repo.change({"README.md": b"# by hand"})
    assert seen(mine) == ("same", (), ())
    mine.edit("style", licence="mit")
    done = only(sync(mine, ["style"]))
    assert done.pushed is not None
    assert done.pushed.kept == ("README.md",)


def test_the_hub_went_back_to_an_older_version(repo: Repo, mine: Catalogue) -> None:
    old = repo.files()
    add(mine, "style", seed=2)
    sync(mine, ["style"])
    repo.commit(old, title="revert")
    assert seen(mine)[0] == "behind"
    sync(mine, ["style"])
    assert mine.get("style").number == 2
    assert seen(mine)[0] == "same"
    head = repo.branches["main"]
    sync(mine, ["style"])
    assert repo.branches["main"] == head


def test_nothing_is_deleted_unless_asked(repo: Repo, mine: Catalogue) -> None:
    mine.remove("style")
    assert seen(mine)[0] == "removed"
    done = only(sync(mine, all=True))
    assert (done.action, WEIGHTS in repo.files()) == ("skipped", True)
    assert only(sync(mine, all=True, delete=True, dry_run=True)).action == "delete"
    assert WEIGHTS in repo.files()
    assert only(sync(mine, ["style"], delete=True)).action == "delete"
    assert list(repo.files()) == [".gitattributes"]
    assert mine.registry.remotes() == {}


def test_what_others_changed_is_not_deleted(repo: Repo, mine: Catalogue) -> None:
    mine.remove("style")
    repo.change({WEIGHTS: b"x", "README.md": b"# by hand"})
    with pytest.raises(ConflictError, match="was changed in user/style since"):
        sync(mine, ["style"], delete=True)
    sync(mine, ["style"], delete=True, prefer="ours")
    assert set(repo.files()) == {".gitattributes", "README.md"}


def test_gone_there(hub: Hub, repo: Repo, mine: Catalogue) -> None:
    kept = mine.get("style")
    del hub.repos["user/style"]
    assert seen(mine)[0] == "gone"
    done = only(sync(mine, ["style"], delete=True))
    assert (done.action, mine.get("style")) == ("skipped", kept)
    assert "`lorahub push style` puts it there again" in done.reason
    assert push(mine, "style").created


def test_a_private_repository_without_its_token(
    hub: Hub, repo: Repo, mine: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_stale")
    assert seen(mine)[0] == "refused"
    assert "token" in status(mine)[0].reason


def test_one_that_fails_does_not_stop_the_others(hub: Hub, repo: Repo, mine: Catalogue) -> None:
    add(mine, "other", seed=5)
    push(mine, "other", to="user/other")
    for name in ("other", "style"):
        mine.edit(name, licence="mit")
    hub.repos["user/other"].change({"lorahub.json": b"nonsense"})
    done = sync(mine, all=True)
    assert [each.action for each in done] == ["failed", "push"]
    assert "lorahub.json cannot be read" in done[0].reason


def test_a_dry_run_changes_nothing(hub: Hub, repo: Repo, mine: Catalogue) -> None:
    add(mine, "style", seed=2)
    with hub.recorded() as asked:
        assert only(sync(mine, ["style"], dry_run=True)).action == "push"
    assert asked_for_bytes(asked) == []
    assert seen(mine)[0] == "ahead"


def test_misuse(hub: Hub, repo: Repo, mine: Catalogue) -> None:
    add(mine, "unpushed", seed=5)
    for names, everything in (((), False), (("style",), True)):
        with pytest.raises(UsageError, match="name the adapters to sync, or say --all"):
            sync(mine, names, all=everything)
    for name in ("unpushed", "nobody"):
        with pytest.raises(NotFoundError, match=f"{name} was not on the Hub before"):
            status(mine, [name])
    with pytest.raises(UsageError, match="expected ours, theirs or pr"):
        sync(mine, ["style"], prefer="mine")
    with hub.gone(), pytest.raises(NetworkError):
        status(mine)


def test_a_foreign_repository_is_followed_but_never_written_to(hub: Hub, mine: Catalogue, tmp_path: Path) -> None:
    first = write_adapter(tmp_path / "a.safetensors", seed=1).read_bytes()
    repo = hub.repo("org/style", {WEIGHTS: first, "README.md": b"# theirs"})
    pull(mine, "org/style")
    mine.edit("style", licence="mit")
    assert seen(mine) == ("same", (), ())
    repo.change({WEIGHTS: write_adapter(tmp_path / "b.safetensors", seed=2).read_bytes()})
    with hub.recorded() as asked:
        assert only(sync(mine, ["style"])).action == "pull"
    assert not [line for line in asked if line.startswith(("POST", "PUT"))]
    assert (mine.get("style").number, mine.get("style").licence) == (2, "mit")
