"""The words of the Hub: one request as the routes see it, and the errors that the client knows by their headers."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from starlette.responses import JSONResponse, Response

if TYPE_CHECKING:
    from tests.hub.server import Hub
    from tests.hub.storage import Repo

BAD_TOKEN = "Invalid credentials in Authorization header"


@dataclass(frozen=True)
class Account:
    """Whose token it is, and what it may do."""

    name: str
    can_write: bool = True
    orgs: tuple[str, ...] = ()

    def owns(self, id: str) -> bool:
        return id.partition("/")[0] in (self.name, *self.orgs)


@dataclass(frozen=True)
class Ask:
    """One request, its path in parts with escapes undone."""

    hub: Hub
    method: str
    parts: tuple[str, ...]
    query: list[tuple[str, str]]
    headers: dict[str, str]
    body: bytes = field(repr=False)
    account: Account | None

    def param(self, name: str, default: str = "") -> str:
        return next((value for key, value in self.query if key == name), default)

    def flag(self, name: str) -> bool:
        return self.param(name).lower() in ("1", "true")

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    @property
    def form(self) -> list[tuple[str, str]]:
        return parse_qsl(self.body.decode())


class Refused(Exception):  # noqa: N818  it is an answer
    """Leaves a route with an error as the answer."""

    def __init__(self, code: int, message: str, name: str | None = None, commit: str | None = None) -> None:
        super().__init__(message)
        self.answer = error(code, message, name, commit)


def error(code: int, message: str, name: str | None = None, commit: str | None = None, **more: str) -> Response:
    """An error; the client makes its exception of the header X-Error-Code."""
    headers = {"X-Error-Message": re.sub(r"\s+", " ", message)}
    headers |= {"X-Error-Code": name} if name else {}
    headers |= {"X-Repo-Commit": commit} if commit else {}
    return JSONResponse({"error": message, **more}, code, headers)


def found(ask: Ask, id: str) -> Repo:
    """The repository, if this account may see it."""
    repo = ask.hub.repos.get(id)
    if repo is None or (repo.private and ask.account is None):
        raise Refused(404 if ask.account else 401, "Repository not found", "RepoNotFound")
    return repo


def commit_of(repo: Repo, revision: str) -> str:
    """The commit that a revision names."""
    sha = repo.resolve(revision)
    if sha is None:
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return sha


def allow_write(ask: Ask, id: str, *, to_propose: bool = False) -> None:
    """Let pass whose token may write there; to propose a change (a pull request), any account's may."""
    if ask.account is None:
        raise Refused(401, "Invalid username or password.")
    if not ask.account.can_write or not (to_propose or ask.account.owns(id)):
        raise Refused(403, f"Forbidden: you must use a write token to upload to a repository ({id})")
