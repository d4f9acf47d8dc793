"""A small Hub on the loopback interface, for the real client: repositories with history, and faults on demand.

What it answers is what huggingface.co answers for models as far as reading goes: repository facts, refs, and files with
the headers that the client builds its cache from. It is a server and no mock: bytes go through a socket.
"""

from __future__ import annotations

import hashlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import unquote

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

TOKEN = "hf_good"  # the one token that this Hub knows
_BAD_TOKEN = "Invalid credentials in Authorization header"


@dataclass(frozen=True)
class File:
    """One file at one commit; weights are stored with LFS, everything else in git."""

    path: str
    content: bytes

    @property
    def in_lfs(self) -> bool:
        return self.path.endswith((".safetensors", ".bin", ".pt"))

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob_id(self) -> str:
        """The git id: of the file, or of the pointer that stands for it."""
        stored = self.content
        if self.in_lfs:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(stored)}\n"
            stored = pointer.encode()
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    def described(self, blobs: bool) -> dict[str, object]:
        facts: dict[str, object] = {"rfilename": self.path}
        if blobs:
            facts |= {"size": len(self.content), "blobId": self.blob_id}
            if self.in_lfs:
                facts["lfs"] = {"sha256": self.sha256, "size": len(self.content), "pointerSize": 130}
        return facts

    def headers(self, commit: str) -> dict[str, str]:
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if self.in_lfs:
            return headers | {
                "ETag": f'"{self.sha256}"',
                "X-Linked-Etag": f'"{self.sha256}"',
                "X-Linked-Size": str(len(self.content)),
            }
        return headers | {"ETag": f'"{self.blob_id}"'}


@dataclass
class Repo:
    """A model repository: commits by sha, and names for some of them."""

    id: str
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], *, branch: str = "main") -> str:
        """Add a commit that holds exactly these files, and move the branch to it; returns its sha."""
        stored = {path: File(path, content) for path, content in files.items()}
        identity = "".join(f"{path}{file.sha256}" for path, file in stored.items())
        sha = hashlib.sha1(f"{self.id}{len(self.commits)}{identity}".encode()).hexdigest()
        self.commits[sha] = stored
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a sha names."""
        found = self.branches.get(revision) or self.tags.get(revision) or revision
        return found if found in self.commits else None


@dataclass(frozen=True)
class Asked:
    """One request as it came in."""

    method: str
    path: str
    range: str | None
    token: str | None


Change = Callable[[Response], Response | None]
"""What a fault makes of the right answer; None closes the connection in the middle of the body."""


@dataclass
class Fault:
    """Changes the next `times` answers to requests whose `METHOD /path` the pattern is found in."""

    pattern: str
    change: Change
    times: int = 1


def status(code: int, **headers: str) -> Change:
    """Another status with an error body; header names are given with underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda right: JSONResponse({"error": f"fault {code}"}, code, named)


def corrupted(right: Response) -> Response:
    """As many bytes as announced, one of them wrong."""
    body = bytearray(right.body)
    body[len(body) // 2] ^= 0xFF
    return Response(bytes(body), right.status_code, dict(right.headers))


def shortened(right: Response) -> Response:
    """A complete answer of a file that lacks its last bytes."""
    headers = {name: value for name, value in right.headers.items() if name != "content-length"}
    return Response(bytes(right.body)[:-16], right.status_code, headers)


def cut_off(right: Response) -> None:
    """The connection ends in the middle of the body."""


def web_page(right: Response) -> Response:
    """What a captive portal says."""
    return Response("<html>please sign in</html>", media_type="text/html")


def delayed(seconds: float) -> Change:
    def wait(right: Response) -> Response:
        time.sleep(seconds)
        return right

    return wait


class Hub:
    """The server: `with Hub() as hub:`, then `hub.url`, `hub.repo(...)`, `hub.fail(...)` and `hub.requests`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.moved: dict[str, str] = {}
        """old id -> new id"""
        self.faults: list[Fault] = []
        self.requests: list[Asked] = []
        self.crashes: list[Exception] = []
        """Mistakes of this server itself; the first is raised when it stops."""
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            self._answer, interface="asgi3", lifespan="off", ws="none", log_level="critical", timeout_keep_alive=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def __enter__(self) -> Hub:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()
        if self.crashes and error is None:
            raise self.crashes[0]

    def repo(self, id: str, files: Mapping[str, bytes] | None = None, **facts: bool) -> Repo:
        """A new repository, with a first commit of `files`."""
        self.repos[id] = Repo(id, **facts)
        self.repos[id].commit(files or {})
        return self.repos[id]

    def fail(self, pattern: str, change: Change, *, times: int = 1) -> None:
        """From now on the next `times` requests that `METHOD /path` matches are answered wrongly."""
        self.faults.append(Fault(pattern, change, times))

    @contextmanager
    def recorded(self) -> Iterator[list[str]]:
        """The requests made in the block, as `METHOD /path`; the list is filled when the block ends."""
        start, seen = len(self.requests), list[str]()
        yield seen
        seen.extend(f"{asked.method} {asked.path}" for asked in self.requests[start:])

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        raw = scope["raw_path"].decode()
        token = request.headers.get("authorization", "").removeprefix("Bearer ") or None
        self.requests.append(Asked(request.method, raw, request.headers.get("range"), token))
        try:
            right = self._route(request, [unquote(part) for part in raw.strip("/").split("/")], token)
        except Exception as error:
            self.crashes.append(error)
            raise
        answer: Response | None = right
        for fault in self.faults:
            if fault.times and re.search(fault.pattern, f"{request.method} {raw}"):
                fault.times -= 1
                answer = fault.change(right)
                break
        if answer is not None:
            await answer(scope, receive, send)
        else:
            await _half(right, send)

    def _route(self, request: Request, parts: list[str], token: str | None) -> Response:
        match parts:
            case ["api", "models", user, name, *rest]:
                serve, revision = self._facts, rest[1] if rest[:1] == ["revision"] else "main"
                if rest == ["refs"]:
                    serve = self._refs
            case [user, name, "resolve", revision, *rest]:
                serve = self._file
            case _:
                return _error(404, "no such page")
        id = f"{user}/{name}"
        if token not in (None, TOKEN):
            return _error(401, _BAD_TOKEN)
        if id in self.moved:
            path = "/".join(parts).replace(id, self.moved[id], 1)
            return Response(status_code=307, headers={"Location": f"/{path}?{request.url.query}"})
        repo = self.repos.get(id)
        if repo is None or (repo.private and not token):
            return _error(404 if token else 401, "Repository not found", "RepoNotFound")
        commit = repo.resolve(revision)
        if commit is None:
            return _error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return serve(request, repo, commit, "/".join(rest))

    def _facts(self, request: Request, repo: Repo, commit: str, rest: str) -> Response:
        blobs = request.query_params.get("blobs", "").lower() in ("1", "true")
        siblings = [file.described(blobs) for file in repo.commits[commit].values()]
        facts = {"id": repo.id, "modelId": repo.id, "sha": commit, "private": repo.private, "gated": repo.gated}
        return JSONResponse({**facts, "tags": [], "siblings": siblings, "cardData": {}})

    def _refs(self, request: Request, repo: Repo, commit: str, rest: str) -> Response:
        def listed(kind: str, names: Mapping[str, str]) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in names.items()]

        branches, tags = listed("heads", repo.branches), listed("tags", repo.tags)
        return JSONResponse({"branches": branches, "tags": tags, "converts": []})

    def _file(self, request: Request, repo: Repo, commit: str, path: str) -> Response:
        if repo.gated and request.headers.get("authorization") is None:
            return _error(401, f"Access to model {repo.id} is restricted", "GatedRepo")
        file = repo.commits[commit].get(path)
        if file is None:
            return _error(404, "Entry not found", "EntryNotFound", commit)
        headers, body, code = file.headers(commit), file.content, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if asked:
            start, stop = int(asked[1]), int(asked[2] or len(body) - 1)
            headers["Content-Range"] = f"bytes {start}-{stop}/{len(body)}"
            body, code = body[start : stop + 1], 206
        if request.method == "HEAD":
            return Response(status_code=code, headers=headers | {"Content-Length": str(len(body))})
        return Response(body, code, headers, "application/octet-stream")


async def _half(right: Response, send: Send) -> None:
    """Announce the whole body, send the first half of it, and leave."""
    await send({"type": "http.response.start", "status": right.status_code, "headers": right.raw_headers})
    await send({"type": "http.response.body", "body": bytes(right.body)[: len(right.body) // 2]})


def _error(code: int, message: str, name: str | None = None, commit: str | None = None) -> Response:
    headers = {"X-Error-Message": message}
    headers |= {"X-Error-Code": name} if name else {}
    headers |= {"X-Repo-Commit": commit} if commit else {}
    return JSONResponse({"error": message}, code, headers)
