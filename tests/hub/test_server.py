"""The test Hub is one: the real client does on it what people do on the Hub, and so does the `hf` command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from tests.hub import server
from tests.hub.server import Hub

WEIGHTS = "pytorch_lora_weights.safetensors"

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own, of httpx2


@pytest.fixture
def api(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=server.TOKEN)


def add(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


@pytest.fixture(params=["lfs", "multipart", "xet"])
def transfer(
    request: pytest.FixtureRequest, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """Each way in which large files travel."""
    if request.param == "multipart":
        hub.part_size = 1000
    if request.param == "xet":
        hub.xet_folder = tmp_path / "xet"
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)

    def check() -> None:
        asked = [str(each) for each in hub.requests]
        assert any("xet-write-token" in line for line in asked) is (request.param == "xet")
        assert (
            sum(line.startswith("PUT /lfs/") for line in asked) == {"lfs": 1, "multipart": 2, "xet": 0}[request.param]
        )

    return check


def test_create_commit_and_read_back(hub: Hub, api: HfApi, transfer: Callable[[], None], lcm: bytes) -> None:
    lcm = (lcm * 2)[:1500]
    api.create_repo("user/lora", private=True)
    done = api.create_commit(
        "user/lora", [add(WEIGHTS, lcm), add("README.md", b"---\nlicense: mit\n---\n")], commit_message="first"
    )
    transfer()
    info = api.model_info("user/lora", files_metadata=True)
    assert (info.sha, info.private, info.card_data and info.card_data.license) == (done.oid, True, "mit")
    assert Path(api.hf_hub_download("user/lora", WEIGHTS, revision=done.oid)).read_bytes() == lcm
    sizes = {file.path: file.size for file in api.list_repo_tree("user/lora", recursive=True)}  # type: ignore[union-attr]
    assert sizes[WEIGHTS] == 1500
    assert [commit.title for commit in api.list_repo_commits("user/lora")] == ["first", "initial commit"]


def test_what_is_there_is_not_sent_again(hub: Hub, api: HfApi, lcm: bytes) -> None:
    api.create_repo("user/lora")
    first = api.create_commit("user/lora", [add(WEIGHTS, lcm)], commit_message="first")
    with hub.recorded() as asked:
        again = api.create_commit("user/lora", [add(WEIGHTS, lcm)], commit_message="again")
    assert again.oid == first.oid
    assert asked[0] == "POST /api/models/user/lora/preupload/main"
    assert not [line for line in asked if "commit/" in line]


def test_history_refs_and_deletion(hub: Hub, api: HfApi) -> None:
    api.create_repo("user/lora")
    first = api.create_commit("user/lora", [add("a/b.txt", b"b"), add("c.txt", b"c")], commit_message="first")
    api.create_tag("user/lora", tag="v1")
    api.create_branch("user/lora", branch="next/try")
    second = api.create_commit(
        "user/lora",
        [CommitOperationDelete("c.txt"), CommitOperationDelete("a/", is_folder=True)],
        commit_message="second",
        revision="next/try",
        parent_commit=first.oid,
    )
    refs = api.list_repo_refs("user/lora")
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": first.oid, "next/try": second.oid}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": first.oid}
    assert api.list_repo_files("user/lora", revision="next/try") == [".gitattributes"]
    assert [each.path for each in api.list_repo_tree("user/lora", "a")] == ["a/b.txt"]
    assert [each.path for each in api.get_paths_info("user/lora", ["c.txt", "x"])] == ["c.txt"]
    with pytest.raises(RevisionNotFoundError):
        api.model_info("user/lora", revision="v2")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag("user/lora", tag="v1")
    api.delete_repo("user/lora")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("user/lora")


def test_a_stale_parent_is_refused(hub: Hub, api: HfApi) -> None:
    api.create_repo("user/lora")
    first = api.create_commit("user/lora", [add("a", b"1")], commit_message="1")
    api.create_commit("user/lora", [add("a", b"2")], commit_message="2")
    with pytest.raises(HfHubHTTPError, match="updated since") as refused:
        api.create_commit("user/lora", [add("a", b"3")], commit_message="3", parent_commit=first.oid)
    assert refused.value.response.status_code == 412


def test_a_pull_request(hub: Hub, api: HfApi) -> None:
    api.create_repo("user/lora")
    stranger = HfApi(endpoint=hub.url, token=server.STRANGER)
    done = stranger.create_commit("user/lora", [add("a", b"1")], commit_message="please", create_pr=True)
    assert (done.pr_revision, done.pr_num) == ("refs/pr/1", 1)
    assert api.list_repo_files("user/lora", revision="refs/pr/1") == [".gitattributes", "a"]
    assert [each.title for each in api.get_repo_discussions("user/lora")] == ["please"]


@pytest.mark.parametrize(
    ("token", "code"), [(None, 401), ("hf_stale", 401), (server.READER, 403), (server.STRANGER, 403)]
)
def test_who_may_not_write(hub: Hub, api: HfApi, token: str | None, code: int) -> None:
    api.create_repo("user/lora")
    with pytest.raises(HfHubHTTPError) as refused:
        HfApi(endpoint=hub.url, token=token or False).create_commit("user/lora", [add("a", b"1")], commit_message="x")
    assert refused.value.response.status_code == code


def test_cards_are_checked(hub: Hub, api: HfApi) -> None:
    api.create_repo("user/lora")
    for card in (b"---\nlicense: [\n---\n", b"---\nlicense: my own\n---\n", b"---\nbase_model: sdxl\n---\n"):
        with pytest.raises((ValueError, BadRequestError), match="Invalid metadata"):
            api.create_commit("user/lora", [add("README.md", card)], commit_message="card")


def test_searches(hub: Hub, api: HfApi) -> None:
    card = b"---\ntags: [lora]\nbase_model: org/sdxl\nbase_model_relation: adapter\n---\n"
    for number in range(60):
        hub.repo(f"user/lora-{number:02}", {"README.md": card}, downloads=number)
    hub.repo("other/lora-x", {"README.md": b"---\ntags: [lora]\n---\n"})
    fitting = [*api.list_models(filter=["lora", "base_model:adapter:org/sdxl"], limit=55)]
    assert [each.id for each in fitting][:2] == ["user/lora-59", "user/lora-58"]
    assert len(fitting) == 55
    assert [each.id for each in api.list_models(author="other", search="LORA")] == ["other/lora-x"]


def test_a_repository_that_moved_and_the_server_that_was_gone(hub: Hub, api: HfApi) -> None:
    api.create_repo("user/old")
    api.move_repo("user/old", "user/new")
    assert api.model_info("user/old").id == "user/new"
    with hub.gone(), pytest.raises(httpx2.ConnectError):
        api.model_info("user/new")
    assert api.model_info("user/new").id == "user/new"


def test_the_hf_command(hub: Hub, tmp_path: Path, lcm: bytes) -> None:
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": server.TOKEN, "HF_HOME": str(tmp_path / "home")}
    quiet = dict.fromkeys(("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_UPDATE_CHECK"), "1")

    def hf(*arguments: str | Path) -> str:
        done = subprocess.run(
            [Path(sys.executable).with_name("hf"), *arguments],
            env={**os.environ, **settings, **quiet},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    (tmp_path / WEIGHTS).write_bytes(lcm)
    hf("repos", "create", "user/lora")
    hf("upload", "user/lora", tmp_path / WEIGHTS)
    assert hub.repos["user/lora"].files()[WEIGHTS].content == lcm
    hf("download", "user/lora", WEIGHTS, "--local-dir", tmp_path / "there")
    assert (tmp_path / "there" / WEIGHTS).read_bytes() == lcm
    assert hf("models", "ls", "--search", "lora", "-q").split() == ["user/lora"]
