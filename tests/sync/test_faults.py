"""What may go wrong on the way: the right error, one clear line, nothing half done, and a second try that succeeds."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from lorahub.errors import AuthError, ConflictError, LorahubError, NetworkError, NotFoundError, VerificationError
from lorahub.sync import pull, push, status
from lorahub.workspace.opening import Catalogue
from tests.hub import faults, server
from tests.hub.faults import Change
from tests.hub.server import Hub
from tests.hub.storage import Repo
from tests.sync.conftest import WEIGHTS, add
from tests.workspace.conftest import write_adapter

BODY = f"GET /user/style/resolve/[0-9a-f]{{40}}/{WEIGHTS}"
SLEEP = time.sleep
COMMIT, FACTS = "POST .*/commit/", "GET /api/models/user/style"


@pytest.fixture
def repo(hub: Hub, tmp_path: Path) -> Repo:
    return hub.repo("user/style", {WEIGHTS: write_adapter(tmp_path / "w.safetensors", seed=1, rank=64).read_bytes()})


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits seconds between its own retries."""
    monkeypatch.setattr("time.sleep", lambda seconds: SLEEP(min(seconds, 0.01)))


def nothing_entered(workspace: Catalogue) -> bool:
    """No row, and no blob that is whole under its name or begun."""
    root = workspace.registry.home / "store"
    return workspace.registry.find() == () and not [path for path in root.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("where", "change", "times", "error", "said"),
    [
        (BODY, faults.corrupted, 3, VerificationError, "was downloaded twice and does not have the hash the Hub announces"),
        (BODY, faults.cut_off, 1000, NetworkError, "user/style: "),
        (BODY, faults.shortened, 1000, NetworkError, "user/style: "),
        (BODY, faults.status(503), 1000, NetworkError, "the Hub answered 503"),
        (BODY, faults.status(503, Retry_After="7"), 1000, NetworkError, "try again in 7 seconds"),
        (FACTS, faults.status(429, Retry_After="60"), 1000, NetworkError, "too many requests: try again in 60 seconds"),
        (FACTS, faults.web_page, 1000, NetworkError, "the answer does not come from a Hub"),
    ],
)  # fmt: skip
def test_a_pull_that_fails_leaves_nothing_and_can_be_repeated(
    hub: Hub, repo: Repo, mine: Catalogue, where: str, change: Change, times: int, error: type[LorahubError], said: str
) -> None:
    hub.fail(where, change, times=times)
    if where == BODY:  # the header, which comes from the same place, is read first
        hub.faults.insert(0, faults.Fault(BODY, lambda right: right))
    with pytest.raises(error, match=said) as raised:
        pull(mine, "user/style")
    assert "\n" not in str(raised.value)
    assert nothing_entered(mine)
    hub.faults.clear()
    assert pull(mine, "user/style").sha256 == repo.files()[WEIGHTS].sha256
    mine.registry.blobs.verify(mine.get("style").file_sha256)


def test_wrong_bytes_once_are_fetched_again(hub: Hub, repo: Repo, mine: Catalogue) -> None:
    hub.faults += [faults.Fault(BODY, lambda right: right), faults.Fault(BODY, faults.corrupted)]
    assert pull(mine, "user/style").sha256 == repo.files()[WEIGHTS].sha256


def test_a_connection_that_breaks_is_resumed(
    hub: Hub, repo: Repo, mine: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    hub.faults += [faults.Fault(BODY, lambda right: right), faults.Fault(BODY, faults.cut_off)]
    pull(mine, "user/style")
    last = hub.requests[-1].range
    assert last is not None
    assert int(last.removeprefix("bytes=").rstrip("-")) > 0


def test_the_network_is_gone_and_comes_back(hub: Hub, repo: Repo, mine: Catalogue) -> None:
    add(mine, "other", seed=3)
    with hub.gone():
        for attempt in (lambda: pull(mine, "user/style"), lambda: push(mine, "other", to="user/other")):
            with pytest.raises(NetworkError, match="the Hub cannot be reached"):
                attempt()
    assert mine.registry.remotes() == {}
    pull(mine, "user/style")
    push(mine, "other", to="user/other")
    assert [each.status for each in status(mine)] == ["same", "same"]


@pytest.mark.parametrize("change", [faults.status(500), faults.status(504), faults.cut_off])
def test_a_lost_reply_to_a_commit_makes_no_second_one(hub: Hub, mine: Catalogue, change: Change) -> None:
    add(mine, "style", seed=1)
    hub.fail(COMMIT, change)
    done = push(mine, "style", to="user/style")
    repo = hub.repos["user/style"]
    assert [each.title for each in repo.history("main")] == ["style:1 by lorahub", "initial commit"]
    assert done.commit == repo.branches["main"]
    assert push(mine, "style").outcome == "unchanged"


def test_a_commit_that_was_not_made_is_made_again(hub: Hub, mine: Catalogue) -> None:
    add(mine, "style", seed=1)
    hub.fail(COMMIT, faults.status(500), handled=False)
    push(mine, "style", to="user/style")
    assert len([*hub.repos["user/style"].history("main")]) == 2


def test_a_hub_that_stays_ill(hub: Hub, mine: Catalogue) -> None:
    add(mine, "style", seed=1)
    hub.fail(COMMIT, faults.status(503), times=1000, handled=False)
    with pytest.raises(NetworkError, match="the Hub answered 503"):
        push(mine, "style", to="user/style")
    assert len([each for each in hub.requests if "/commit/" in each.path]) == 2
    assert mine.registry.remotes() == {}
    hub.faults.clear()
    with hub.recorded() as asked:
        assert push(mine, "style", to="user/style").outcome == "pushed"
    assert not [line for line in asked if line.startswith("PUT")], "the weights were there already"


def test_a_lost_reply_whose_commit_nobody_can_look_up(hub: Hub, mine: Catalogue) -> None:
    add(mine, "style", seed=1)
    push(mine, "style", to="user/style")
    mine.edit("style", licence="mit")
    hub.fail(COMMIT, faults.cut_off)
    hub.faults.append(faults.Fault(FACTS, lambda right: right))  # the look before the commit
    hub.fail(FACTS, faults.status(503))
    with pytest.raises(NetworkError):
        push(mine, "style")
    repo = hub.repos["user/style"]
    assert len([*repo.history("main")]) == 3
    assert push(mine, "style").outcome == "unchanged"
    assert len([*repo.history("main")]) == 3
    assert status(mine)[0].status == "same"


def test_a_race_between_two_pushes(hub: Hub, mine: Catalogue) -> None:
    add(mine, "style", seed=1)
    push(mine, "style", to="user/style")
    mine.edit("style", licence="mit")
    repo = hub.repos["user/style"]

    def faster(right: object) -> None:
        repo.change({WEIGHTS: b"somebody else's"})

    hub.fail("POST .*/preupload/", lambda right: faster(right) or right)
    with pytest.raises(ConflictError, match="user/style changed while this was pushed: run `lorahub sync`"):
        push(mine, "style")
    assert repo.files()[WEIGHTS].content == b"somebody else's"
    assert status(mine)[0].status == "diverged"


def test_a_lost_reply_to_a_pull_request_is_not_repeated(hub: Hub, mine: Catalogue) -> None:
    add(mine, "style", seed=1)
    push(mine, "style", to="user/style")
    add(mine, "style", seed=2)
    hub.fail(COMMIT, faults.cut_off)
    with pytest.raises(NetworkError, match="look for an open pull request"):
        push(mine, "style", pr=True)
    assert len(hub.repos["user/style"].pull_requests) == 1


def private(hub: Hub) -> None:
    hub.repos["user/style"].private = True
    del hub.accounts[server.TOKEN]
    hub.accounts["hf_other"] = server.Account("other")


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda hub: hub.repos.pop("user/style"), NotFoundError, "no such repository, or it is private"),
        (lambda hub: hub.repos["user/style"].branches.pop("main"), NotFoundError, "no such revision"),
        (private, AuthError, "the token is missing or not valid"),
    ],
)
def test_what_became_of_a_repository(
    hub: Hub, repo: Repo, mine: Catalogue, change: Callable[[Hub], object], error: type[LorahubError], said: str
) -> None:
    pull(mine, "user/style")
    kept = mine.get("style")
    change(hub)
    with pytest.raises(error, match=said):
        pull(mine, "user/style@main")
    assert mine.get("style") == kept
    assert status(mine)[0].status == ("refused" if error is AuthError else "gone")


def test_a_gated_repository(hub: Hub, repo: Repo, mine: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    repo.gated = True
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(AuthError, match="the repository is gated: ask for access on its page"):
        pull(mine, "user/style")
    monkeypatch.setenv("HF_TOKEN", server.TOKEN)
    pull(mine, "user/style")


def test_a_repository_that_was_renamed(hub: Hub, repo: Repo, mine: Catalogue) -> None:
    pull(mine, "user/style")
    hub.move("user/style", "team/better")
    assert status(mine)[0].status == "same"
    done = pull(mine, "user/style")
    assert (done.repo, done.outcome) == ("team/better", "known")
    known = mine.registry.remote("style")
    assert known is not None
    assert known.repo == "team/better"


def test_a_branch_that_moves_during_a_pull(hub: Hub, repo: Repo, mine: Catalogue, tmp_path: Path) -> None:
    first = repo.files()[WEIGHTS].sha256
    other = write_adapter(tmp_path / "o.safetensors", seed=9).read_bytes()
    hub.fail(BODY, lambda right: repo.change({WEIGHTS: other}) and right)
    assert pull(mine, "user/style").sha256 == first
    assert status(mine)[0].status == "behind"


def test_offline(hub: Hub, repo: Repo, mine: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkError, match="HF_HUB_OFFLINE is set"):
        pull(mine, "user/style")
    assert hub.requests == []


@pytest.mark.parametrize("rank", [2, 64])
def test_xet(hub: Hub, mine: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    hub.xet_folder = tmp_path / "xet"
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    record = add(mine, "style", seed=1, rank=rank)
    push(mine, "style", to="user/style")
    assert hub.repos["user/style"].files()[WEIGHTS].sha256 == record.file_sha256
    assert not [each for each in hub.requests if "/lfs/" in each.path]
    with hub.recorded() as asked:
        assert push(mine, "style").outcome == "unchanged"
    assert len(asked) == 1


def test_xet_where_the_hub_has_none(hub: Hub, mine: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    add(mine, "style", seed=1)
    with pytest.raises(NetworkError, match="HF_HUB_DISABLE_XET=1"):
        push(mine, "style", to="user/style")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    assert push(mine, "style", to="user/style").outcome == "pushed"
