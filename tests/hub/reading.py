"""The routes that only read: facts, trees, refs, history, files, search."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from starlette.responses import JSONResponse, Response

from tests.hub.answers import Account, Ask, Refused, commit_of, error, found
from tests.hub.storage import Repo, safetensors_header

DATE = "2026-01-02T03:04:05.000Z"
PAGE = 50


def whoami(ask: Ask) -> Response:
    if ask.account is None:
        return error(401, "Invalid username or password.")
    return JSONResponse(_person(ask.account))


def _person(account: Account) -> dict[str, object]:
    orgs = [{"type": "org", "name": name, "isEnterprise": False} for name in account.orgs]
    role = "write" if account.can_write else "read"
    token = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
    return {"type": "user", "name": account.name, "fullname": account.name, "orgs": orgs, "auth": token}


def listed(ask: Ask) -> Response:
    """GET /api/models: every filter must fit; the most downloaded first."""
    wanted = [value for key, value in ask.query if key == "filter"]
    words, author = ask.param("search").lower().split(), ask.param("author")
    repos = [
        repo
        for repo in ask.hub.repos.values()
        if (not repo.private or ask.account)
        and set(wanted) <= set(repo.labels)
        and all(word in repo.id.lower() for word in words)
        and (not author or repo.id.startswith(f"{author}/"))
    ]
    key = ask.param("sort", "downloads")
    repos.sort(key=lambda repo: (-getattr(repo, key, 0), repo.id))
    start, limit = int(ask.param("cursor", "0")), int(ask.param("limit", str(PAGE)))
    stop = start + min(limit, PAGE)
    headers = {}
    if stop < len(repos) and limit > PAGE:
        rest = "&".join([*(f"{k}={v}" for k, v in ask.query if k != "cursor"), f"cursor={stop}"])
        headers["Link"] = f'<{ask.hub.url}/api/models?{rest}>; rel="next"'
    return JSONResponse([_facts(repo, repo.branches["main"], blobs=False) for repo in repos[start:stop]], 200, headers)


def facts(ask: Ask, id: str, revision: str) -> Response:
    repo = found(ask, id)
    return JSONResponse(_facts(repo, commit_of(repo, revision), blobs=ask.flag("blobs")))


def _facts(repo: Repo, commit: str, *, blobs: bool) -> dict[str, object]:
    siblings = [file.described(blobs) for file in repo.commits[commit].files.values()]
    return {
        "id": repo.id, "modelId": repo.id, "sha": commit, "private": repo.private, "gated": repo.gated,
        "disabled": False, "downloads": repo.downloads, "likes": repo.likes, "tags": repo.labels,
        "pipeline_tag": repo.card.get("pipeline_tag"), "library_name": repo.card.get("library_name"),
        "createdAt": DATE, "lastModified": DATE, "siblings": siblings, "cardData": repo.card,
    }  # fmt: skip


def tree(ask: Ask, id: str, revision: str, below: str) -> Response:
    repo = found(ask, id)
    sha = commit_of(repo, revision)
    entries: dict[str, dict[str, object]] = {}
    for path, file in repo.commits[sha].files.items():
        if below and not path.startswith(f"{below}/"):
            continue
        inside = PurePosixPath(path).relative_to(below or ".")
        for folder in [*inside.parents][:-1][::-1]:
            name = str(PurePosixPath(below) / folder)
            entries[name] = {"type": "directory", "path": name, "size": 0, "oid": "0" * 40}
        entries[path] = file.entry()
    if below and not entries:
        raise Refused(404, f"{below} does not exist on {revision}", "EntryNotFound", sha)
    if not ask.flag("recursive"):
        depth = below.count("/") + 1 if below else 0
        entries = {name: entry for name, entry in entries.items() if name.count("/") == depth}
    return JSONResponse(list(entries.values()), headers={"X-Repo-Commit": sha})


def paths_info(ask: Ask, id: str, revision: str) -> Response:
    repo = found(ask, id)
    files = repo.commits[commit_of(repo, revision)].files
    paths = [value for key, value in ask.form if key == "paths"] if ask.body[:1] != b"{" else ask.json["paths"]
    return JSONResponse([files[path].entry() for path in paths if path in files])


def refs(ask: Ask, id: str) -> Response:
    repo = found(ask, id)

    def named(kind: str, names: Mapping[str, str]) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in names.items()]

    requests = [{"name": name, "ref": name, "targetCommit": sha} for name, sha in repo.pull_requests.items()]
    answer = {"branches": named("heads", repo.branches), "tags": named("tags", repo.tags), "converts": []}
    return JSONResponse(answer | ({"pullRequests": requests} if ask.flag("include_prs") else {}))


def commits(ask: Ask, id: str, revision: str) -> Response:
    repo = found(ask, id)
    commit_of(repo, revision)
    return JSONResponse(
        [
            {"id": each.sha, "title": each.title, "message": "", "date": DATE, "authors": [{"user": "user"}]}
            for each in repo.history(revision)
        ]
    )


def header(ask: Ask, id: str, revision: str, path: str) -> Response:
    """GET .../safetensors-metadata/..."""
    repo = found(ask, id)
    sha = commit_of(repo, revision)
    file = repo.commits[sha].files.get(path)
    if file is None:
        raise Refused(404, "Entry not found", "EntryNotFound", sha)
    return JSONResponse(safetensors_header(file.content))


def resolve(ask: Ask, id: str, revision: str, path: str) -> Response:
    """The bytes of a file, or some of them."""
    repo = found(ask, id)
    sha = commit_of(repo, revision)
    if repo.gated and ask.account is None:
        raise Refused(401, f"Access to model {id} is restricted", "GatedRepo")
    file = repo.commits[sha].files.get(path)
    if file is None:
        raise Refused(404, "Entry not found", "EntryNotFound", sha)
    headers, body, code = file.headers(sha), file.content, 200
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", ask.headers.get("range", ""))
    if asked and ask.method != "HEAD":
        start, stop = int(asked[1]), min(int(asked[2] or len(body) - 1), len(body) - 1)
        headers["Content-Range"] = f"bytes {start}-{stop}/{len(body)}"
        body, code = body[start : stop + 1], 206
    if ask.method == "HEAD":
        return Response(status_code=code, headers=headers | {"Content-Length": str(len(body))})
    return Response(body, code, headers, "application/octet-stream")
