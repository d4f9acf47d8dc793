"""Which request goes where."""

from __future__ import annotations

import time
from urllib.parse import urlencode

from starlette.responses import JSONResponse, Response

from tests.hub import reading, writing
from tests.hub.answers import Ask, allow_write, error, found


def answer(ask: Ask) -> Response:
    """The right answer; a repository that was renamed is elsewhere."""
    match ask.parts:
        case ("api", "models", user, name, *_) | (user, name, "resolve", *_) | (user, name, "info" | "lfs-verify", *_):
            id = f"{user}/{name.removesuffix('.git')}"
            if id in ask.hub.moved:
                path = "/".join(ask.parts).replace(f"{user}/{name.removesuffix('.git')}", ask.hub.moved[id], 1)
                return Response(status_code=307, headers={"Location": f"/{path}?{urlencode(ask.query)}"})
            return _of_repository(ask, id) if ask.parts[0] == "api" else _of_files(ask, id)
        case ("lfs", oid):
            return writing.lfs_object(ask, oid)
        case ("lfs", oid, part):
            return writing.lfs_part(ask, oid, part)
    return _of_everything(ask)


def _of_everything(ask: Ask) -> Response:
    match (ask.method, *ask.parts):
        case ("GET", "api", "whoami-v2"):
            return reading.whoami(ask)
        case ("GET", "api", "models"):
            return reading.listed(ask)
        case ("POST", "api", "validate-yaml"):
            return writing.validate_yaml(ask)
        case ("POST", "api", "repos", "create"):
            return writing.create(ask)
        case ("DELETE", "api", "repos", "delete"):
            return writing.delete(ask)
        case ("POST", "api", "repos", "move"):
            return writing.move(ask)
    return error(404, f"no such page: {ask.method} /{'/'.join(ask.parts)}")


def _of_repository(ask: Ask, id: str) -> Response:
    match (ask.method, *ask.parts[4:]):
        case ("GET",):
            return reading.facts(ask, id, "main")
        case ("GET", "revision", revision):
            return reading.facts(ask, id, revision)
        case ("GET", "tree", revision, *below):
            return reading.tree(ask, id, revision, "/".join(below))
        case ("POST", "paths-info", revision):
            return reading.paths_info(ask, id, revision)
        case ("GET", "refs"):
            return reading.refs(ask, id)
        case ("GET", "commits", revision):
            return reading.commits(ask, id, revision)
        case ("GET", "safetensors-metadata", *path):
            return reading.header(ask, id, "main", "/".join(path))
        case ("GET", "discussions"):
            return writing.discussions(ask, id)
        case ("GET", "auth-check"):
            found(ask, id)
            return JSONResponse({})
        case ("PUT", "settings"):
            return writing.settings(ask, id)
        case ("POST" | "DELETE", "branch", name):
            return writing.branch(ask, id, name)
        case ("POST" | "DELETE", "tag", name):
            return writing.tag(ask, id, name)
        case ("POST", "preupload", revision):
            return writing.preupload(ask, id, revision)
        case ("POST", "commit", revision):
            return writing.commit(ask, id, revision)
        case ("GET", "xet-write-token", _) if ask.hub.xet_folder is not None:
            allow_write(ask, found(ask, id).id, to_propose=ask.flag("create_pr"))
            expiry = int(time.time()) + 3600
            url = f"local://{ask.hub.xet_folder}"
            headers = {"X-Xet-Cas-Url": url, "X-Xet-Token-Expiration": str(expiry), "X-Xet-Access-Token": "xet"}
            return JSONResponse({"casUrl": url, "exp": expiry, "accessToken": "xet"}, headers=headers)
    return error(404, f"no such page: {ask.method} /{'/'.join(ask.parts)}")


def _of_files(ask: Ask, id: str) -> Response:
    match (ask.method, *ask.parts[2:]):
        case ("GET" | "HEAD", "resolve", revision, *path):
            return reading.resolve(ask, id, revision, "/".join(path))
        case ("POST", "info", "lfs", "objects", "batch"):
            return writing.lfs_batch(ask, id)
        case ("POST", "lfs-verify"):
            return writing.lfs_verify(ask)
    return error(404, f"no such page: {ask.method} /{'/'.join(ask.parts)}")
