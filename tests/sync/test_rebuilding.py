"""A merged adapter is made again from its parents, wherever they are, and proven to be the same to the bit."""

from __future__ import annotations

import json

import pytest

from lorahub.errors import NotFoundError, UsageError, VerificationError
from lorahub.loading import combine
from lorahub.making import Wish
from lorahub.sync import pull, push
from lorahub.workspace.composing import compose
from lorahub.workspace.opening import Catalogue
from lorahub.workspace.replaying import rebuild
from tests.hub.server import Hub
from tests.sync.conftest import WEIGHTS, add


@pytest.fixture
def merged(hub: Hub, mine: Catalogue) -> str:
    """`fast`, made of `style` and `lcm`; all three are on the Hub. Its sha256."""
    add(mine, "style", seed=1)
    add(mine, "lcm", seed=2)
    for name in ("style", "lcm"):
        push(mine, name, to=f"user/{name}")
    compose(mine, combine("0.8*style + lcm"), "fast", Wish(rank=3))
    push(mine, "fast", to="user/fast")
    return mine.get("fast").file_sha256


def weights(asked: list[str]) -> set[str]:
    return {line.split("/")[2] for line in asked if line.startswith("HEAD") and line.endswith(WEIGHTS)}


def test_from_parents_that_are_pulled(hub: Hub, merged: str, theirs: Catalogue) -> None:
    with hub.recorded() as asked:
        done = pull(theirs, "user/fast", rebuild=True)
    assert (done.rebuilt, done.downloaded, done.sha256) == (True, False, merged)
    assert weights(asked) == {"style", "lcm"}
    record = theirs.get("fast")
    assert (record.file_sha256, record.kind, record.stored) == (merged, "merged", True)
    assert [parent.weight for parent in theirs.registry.parents("fast")] == [0.8, 1.0]


def test_lineage_comes_along(hub: Hub, merged: str, theirs: Catalogue) -> None:
    pull(theirs, "user/fast")
    pull(theirs, "user/style")
    family = theirs.lineage("fast")
    assert {node.reference for node in family.nodes.values()} == {"fast:1", "style:1", None}
    with pytest.raises(NotFoundError, match="lcm"):
        rebuild(theirs, "fast")
    pull(theirs, "user/lcm")
    assert rebuild(theirs, "fast").file_identical


def test_from_a_parent_that_moved_on(hub: Hub, merged: str, mine: Catalogue, theirs: Catalogue) -> None:
    add(mine, "style", seed=9)
    push(mine, "style")
    assert pull(theirs, "user/fast", rebuild=True).sha256 == merged


def test_from_parents_that_are_here(hub: Hub, merged: str, theirs: Catalogue) -> None:
    pull(theirs, "user/style", name="renamed")
    pull(theirs, "user/lcm")
    with hub.recorded() as asked:
        pull(theirs, "user/fast", rebuild=True)
    assert weights(asked) == set()


def test_a_parent_that_is_nowhere(hub: Hub, merged: str, theirs: Catalogue) -> None:
    del hub.repos["user/lcm"]
    with pytest.raises(NotFoundError):
        pull(theirs, "user/fast", rebuild=True)
    assert theirs.registry.find() == ()
    assert pull(theirs, "user/fast").sha256 == merged


def test_a_file_that_is_not_what_the_recipe_makes(hub: Hub, merged: str, mine: Catalogue, theirs: Catalogue) -> None:
    repo = hub.repos["user/fast"]
    told, content = repo.files()["lorahub.json"].content, hub.repos["user/lcm"].files()[WEIGHTS]
    repo.change({WEIGHTS: content.content, "lorahub.json": told.replace(merged.encode(), content.sha256.encode())})
    with pytest.raises(VerificationError, match="fast is not what its parents make here"):
        pull(theirs, "user/fast", rebuild=True)
    assert theirs.registry.find() == ()


def test_somebody_without_the_parents_does_not_forget_where_they_are(
    hub: Hub, merged: str, theirs: Catalogue, mine: Catalogue
) -> None:
    before = json.loads(hub.repos["user/fast"].files()["lorahub.json"].content)
    pull(theirs, "user/fast")
    assert push(theirs, "fast").outcome == "unchanged"
    theirs.edit("fast", licence="mit")
    push(theirs, "fast")
    after = json.loads(hub.repos["user/fast"].files()["lorahub.json"].content)
    assert [parent["repo"] for parent in after["parents"]] == ["user/style", "user/lcm"]
    assert after == before | {"said": {**before["said"], "licence": "mit"}}


def test_what_was_not_merged(hub: Hub, merged: str, theirs: Catalogue) -> None:
    with pytest.raises(UsageError, match=r"does not say how .* was made"):
        pull(theirs, "user/style", rebuild=True)
