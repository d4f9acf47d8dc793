"""Change a repository by one commit, or not at all.

The rule: a commit states the one it was made on, so that it never undoes what somebody else did meanwhile; and a reply
that got lost is looked up before anything is tried again, so that no commit is made twice.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from lorahub.errors import ConflictError, NetworkError, NotFoundError
from lorahub.hub.bars import bars
from lorahub.hub.errors import translated
from lorahub.hub.repository import Snapshot, look


@dataclass(frozen=True)
class Change:
    """What a commit adds or replaces, and deletes, by path in the repository."""

    title: str
    additions: Mapping[str, Path | bytes] = field(default_factory=dict)
    deletions: Sequence[str] = ()

    def is_in(self, snapshot: Snapshot) -> bool:
        """Whether the repository looks as if the change had been made."""
        return all(
            path in snapshot.files and snapshot.files[path].is_same(content) for path, content in self.additions.items()
        ) and not any(path in snapshot.files for path in self.deletions)


def make_repository(repo: str, *, private: bool) -> None:
    """Make a model repository; one that exists is left as it is. Raises AuthError without a token that may."""
    with translated(repo):
        HfApi().create_repo(repo, private=private, exist_ok=True)


def make_branch(repo: str, branch: str) -> None:
    """Begin a branch where the default branch is; one that exists is left as it is."""
    with translated(repo):
        HfApi().create_branch(repo, branch=branch, exist_ok=True)


def commit(before: Snapshot, branch: str, change: Change) -> str:
    """Make the change on the branch that `before` is the head of; returns the sha of the commit.

    Raises ConflictError when somebody else changed the branch meanwhile, AuthError without the right to write, and
    NetworkError; then what is on the Hub is either as before or as wished, which the next try finds out first.
    """
    for last in (False, True):
        try:
            return _commit(before, branch, change)
        except NetworkError:
            now = look(before.repo, branch)
            if now.commit != before.commit and change.is_in(now):
                return now.commit  # only the reply was lost
            if last or now.commit != before.commit:
                raise
    raise AssertionError("unreachable")


def propose(before: Snapshot, branch: str, change: Change) -> str:
    """Open a pull request with the change; returns its address. Raises like `commit`.

    A lost reply is not tried again: the request may be there already.
    """
    try:
        with translated(before.repo), _quietly():
            info = HfApi().create_commit(
                before.repo, _operations(change), commit_message=change.title, revision=branch, create_pr=True
            )
    except NetworkError as error:
        raise NetworkError(f"{error}; look for an open pull request on its page before trying again") from error
    return str(info.pr_url)


def tag(repo: str, name: str, commit: str) -> None:
    """Put a tag on a commit. Raises ConflictError when the tag is on another one; on this one it stays."""
    try:
        with translated(f"tag {name} of {repo}"):
            HfApi().create_tag(repo, tag=name, revision=commit)
    except ConflictError:
        if look(repo, name).commit != commit:
            raise ConflictError(f"{repo} has a tag {name} on another commit: choose another name") from None


def is_branch(repo: str, name: str) -> bool:
    """Whether the name is that of a branch, which moves; tags and commits stay where they are."""
    with translated(repo):
        return any(ref.name == name for ref in HfApi().list_repo_refs(repo).branches)


def find(repo: str, branch: str) -> Snapshot | None:
    """The head of a branch; None when there is no such repository or branch for this token."""
    try:
        return look(repo, branch)
    except NotFoundError:
        return None


def _commit(before: Snapshot, branch: str, change: Change) -> str:
    with translated(before.repo), _quietly():
        info = HfApi().create_commit(
            before.repo,
            _operations(change),
            commit_message=change.title,
            revision=branch,
            parent_commit=before.commit,
        )
    return str(info.oid)


def _operations(change: Change) -> list[CommitOperationAdd | CommitOperationDelete]:
    additions = [
        CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
        for path, content in change.additions.items()
    ]
    return [*additions, *map(CommitOperationDelete, change.deletions)]


def history(repo: str, limit: int) -> Iterator[str]:
    """The newest commits of the default branch, the newest first."""
    with translated(repo):
        yield from [commit.commit_id for commit in HfApi().list_repo_commits(repo)[:limit]]


@contextmanager
def _quietly() -> Iterator[None]:
    """The client warns of cards without a licence, and of its own use of its HTTP library."""
    with warnings.catch_warnings(), bars():
        warnings.simplefilter("ignore")
        yield
