"""The routes that change something: repositories, branches, tags, and commits with the objects they need."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import yaml
from starlette.responses import JSONResponse, Response

from tests.hub.answers import Ask, Refused, allow_write, commit_of, error, found
from tests.hub.storage import GITATTRIBUTES, File, Repo, front_matter

LICENCES = {
    "apache-2.0", "mit", "openrail", "creativeml-openrail-m", "openrail++", "cc-by-4.0", "cc-by-nc-4.0", "cc0-1.0",
    "bsd-3-clause", "gpl-3.0", "unknown", "other",
}  # fmt: skip
"""Some of those that the Hub takes; it refuses a card with any other."""
MAX_BODY = 10 * 2**20
MOVED = "The branch was updated since you opened this page. Please refresh and try again."


def create(ask: Ask) -> Response:
    if ask.account is None:
        raise Refused(401, "Invalid username or password.")
    id = f"{ask.json.get('organization') or ask.account.name}/{ask.json['name']}"
    url = f"{ask.hub.url}/{id}"
    if not ask.account.can_write or not ask.account.owns(id):
        raise Refused(403, f"You don't have the rights to create a model under the namespace {id.partition('/')[0]}")
    if id in ask.hub.repos:
        return error(409, f"You already created this model repo: {id}", url=url)
    ask.hub.repo(id, {".gitattributes": GITATTRIBUTES}, private=ask.json.get("visibility") == "private")
    return JSONResponse({"url": url, "name": id})


def delete(ask: Ask) -> Response:
    id = f"{ask.json.get('organization')}/{ask.json['name']}"
    allow_write(ask, found(ask, id).id)
    del ask.hub.repos[id]
    return JSONResponse({})


def move(ask: Ask) -> Response:
    before, after = ask.json["fromRepo"], ask.json["toRepo"]
    allow_write(ask, found(ask, before).id)
    ask.hub.move(before, after)
    return JSONResponse({})


def settings(ask: Ask, id: str) -> Response:
    repo = found(ask, id)
    allow_write(ask, id)
    repo.private = ask.json.get("visibility", "private" if repo.private else "public") == "private"
    repo.gated = bool(ask.json.get("gated", repo.gated))
    return JSONResponse({})


def branch(ask: Ask, id: str, name: str) -> Response:
    repo = found(ask, id)
    allow_write(ask, id)
    if ask.method == "DELETE":
        repo.branches.pop(name)
    elif name in repo.branches:
        raise Refused(409, f"Reference already exists: refs/heads/{name}")
    else:
        repo.branches[name] = commit_of(repo, ask.json.get("startingPoint", "main"))
    return JSONResponse({})


def tag(ask: Ask, id: str, name: str) -> Response:
    """POST .../tag/{revision} makes a tag there, DELETE .../tag/{tag} removes it."""
    repo = found(ask, id)
    allow_write(ask, id)
    if ask.method == "DELETE":
        repo.tags.pop(name)
    elif ask.json["tag"] in repo.tags:
        raise Refused(409, f"Tag reference exists already: {ask.json['tag']}")
    else:
        repo.tags[ask.json["tag"]] = commit_of(repo, name)
    return JSONResponse({})


def validate_yaml(ask: Ask) -> Response:
    problems, warnings = [], []
    try:
        card = front_matter(ask.json["content"])
        if "license" in card and card["license"] not in LICENCES:
            problems.append(f'"license" must be one of [{", ".join(sorted(LICENCES))}]')
        if not card:
            warnings.append("empty or missing yaml metadata in repo card")
        bases = card.get("base_model", [])
        for base in [bases] if isinstance(bases, str) else bases:
            if base.count("/") != 1:
                problems.append(f'"base_model" with value "{base}" is not valid. Use a model id from the Hub')
    except yaml.YAMLError as mistake:
        problems.append(f"bad indentation or syntax: {mistake}")
    answer = {"errors": [{"message": text} for text in problems], "warnings": [{"message": t} for t in warnings]}
    return JSONResponse(answer, 400 if problems else 200)


def preupload(ask: Ask, id: str, revision: str) -> Response:
    repo = found(ask, id)
    allow_write(ask, id, to_propose=ask.flag("create_pr"))
    files = repo.commits[commit_of(repo, revision)].files
    answer = []
    for asked in ask.json["files"]:
        there = files.get(asked["path"])
        mode = "lfs" if File(asked["path"], b"").in_lfs or asked["size"] > MAX_BODY else "regular"
        answer.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": there and there.oid})
    return JSONResponse({"files": answer})


def lfs_batch(ask: Ask, id: str) -> Response:
    allow_write(ask, found(ask, id).id, to_propose=True)
    answer: list[dict[str, Any]] = []
    for asked in ask.json["objects"]:
        oid, size = asked["oid"], asked["size"]
        entry: dict[str, Any] = {"oid": oid, "size": size}
        if oid not in ask.hub.objects:
            upload: dict[str, Any] = {"href": f"{ask.hub.url}/lfs/{oid}"}
            if ask.hub.part_size and size > ask.hub.part_size:
                parts = -(-size // ask.hub.part_size)
                links = {str(part): f"{ask.hub.url}/lfs/{oid}/{part}" for part in range(1, parts + 1)}
                upload["header"] = {"chunk_size": str(ask.hub.part_size), **links}
            entry["actions"] = {"upload": upload, "verify": {"href": f"{ask.hub.url}/{id}/lfs-verify"}}
        answer.append(entry)
    return JSONResponse({"transfer": "basic", "objects": answer}, media_type="application/vnd.git-lfs+json")


def lfs_part(ask: Ask, oid: str, part: str) -> Response:
    """PUT of one part of an object."""
    ask.hub.parts.setdefault(oid, {})[int(part)] = ask.body
    return Response(headers={"ETag": f'"{hashlib.md5(ask.body).hexdigest()}"'})


def lfs_object(ask: Ask, oid: str) -> Response:
    """PUT of a whole object, or POST that says its parts are all there."""
    content = ask.body
    if ask.method == "POST":
        parts = ask.hub.parts.pop(oid)
        content = b"".join(parts[each["partNumber"]] for each in ask.json["parts"])
    if hashlib.sha256(content).hexdigest() != oid:
        raise Refused(400, "the bytes do not have the announced sha256")
    ask.hub.objects[oid] = content
    return JSONResponse({})


def lfs_verify(ask: Ask) -> Response:
    there = ask.hub.objects.get(ask.json["oid"])
    if there is None or len(there) != ask.json["size"]:
        raise Refused(404, "no such object")
    return JSONResponse({})


def commit(ask: Ask, id: str, revision: str) -> Response:
    repo, pr = found(ask, id), ask.flag("create_pr")
    allow_write(ask, id, to_propose=pr)
    head = commit_of(repo, revision)
    if revision not in repo.branches and revision not in repo.pull_requests:
        raise Refused(400, f"{revision} is no branch")
    lines = [json.loads(line) for line in ask.body.splitlines()]
    stated = next(line["value"] for line in lines if line["key"] == "header")
    if stated.get("parentCommit") not in (None, head):
        raise Refused(412, MOVED)
    files = dict(repo.commits[head].files)
    for line in lines:
        _apply(ask, files, line["key"], line["value"])
    sha = repo.commit(files, branch=revision, title=stated["summary"], pr=pr)
    answer = {"success": True, "commitOid": sha, "commitUrl": f"{ask.hub.url}/{id}/commit/{sha}", "hookOutput": ""}
    if pr:
        answer["pullRequestUrl"] = f"{ask.hub.url}/{id}/discussions/{len(repo.pull_requests)}"
    return JSONResponse(answer)


def _apply(ask: Ask, files: dict[str, File], key: str, value: dict[str, Any]) -> None:
    path = value.get("path", "")
    if key == "file":
        files[path] = File(path, base64.b64decode(value["content"]))
    elif key == "lfsFile":
        content = ask.hub.object(value["oid"])
        if content is None:
            raise Refused(
                400, f"Your push was rejected because an LFS pointer pointed to a file that does not exist: {path}"
            )
        files[path] = File(path, content)
    elif key == "deletedFile":
        if path not in files:
            raise Refused(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        del files[path]
    elif key == "deletedFolder":
        for name in [name for name in files if name.startswith(path)]:
            del files[name]
    elif key != "header":
        raise Refused(400, f"unknown operation {key}")


def discussions(ask: Ask, id: str) -> Response:
    repo: Repo = found(ask, id)
    listed = [
        {
            "num": number,
            "title": repo.commits[sha].title,
            "status": "open",
            "isPullRequest": True,
            "author": {"name": "user"},
            "createdAt": "2026-01-02T03:04:05.000Z",
            "repo": {"name": id, "type": "model"},
        }
        for number, sha in enumerate(repo.pull_requests.values(), 1)
    ]
    return JSONResponse({"discussions": listed, "count": len(listed), "start": 0})
