"""A small Hub on the loopback interface, for the real client: repositories with history, and faults on demand.

What it answers is what huggingface.co answers for models as far as the client looks. It is a server and no mock: bytes
go through a socket. Left out: rate limits, organisations' roles, gated access by request, datasets and Spaces.
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote

import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tests.hub import routes, xet
from tests.hub.answers import BAD_TOKEN, Account, Ask, Refused, error
from tests.hub.faults import Change, Fault
from tests.hub.storage import Repo

TOKEN = "hf_good"
"""Of `user`, who may write."""
READER = "hf_read"
"""Of `user`, but only for reading."""
STRANGER = "hf_other"
"""Of somebody else, who may write to their own repositories."""


@dataclass(frozen=True)
class Asked:
    """One request as it came in."""

    method: str
    path: str
    range: str | None
    token: str | None
    size: int = 0
    """Of its body."""

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class Hub:
    """The server: `with Hub() as hub:`, then `hub.url`, `hub.repo(...)`, `hub.fail(...)` and `hub.requests`.

    xet_folder: turns Xet storage on, with this folder for its bytes.
    """

    def __init__(self, xet_folder: Path | None = None) -> None:
        self.repos: dict[str, Repo] = {}
        self.moved: dict[str, str] = {}
        """old id -> new id"""
        self.accounts = {
            TOKEN: Account("user", orgs=("team",)),
            READER: Account("user", can_write=False),
            STRANGER: Account("other"),
        }
        self.objects: dict[str, bytes] = {}
        """Large objects by sha256."""
        self.parts: dict[str, dict[int, bytes]] = {}
        self.part_size: int | None = None
        """Larger objects are uploaded in parts of this size."""
        self.xet_folder = xet_folder
        self.faults: list[Fault] = []
        self.requests: list[Asked] = []
        self.crashes: list[Exception] = []
        """Mistakes of this server itself; the first is raised when it stops."""
        self._lock = threading.Lock()
        self._port = 0
        self._listen()

    def __enter__(self) -> Hub:
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()
        if self.crashes and error is None:
            raise self.crashes[0]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def repo(self, id: str, files: Mapping[str, bytes] | None = None, **facts: Any) -> Repo:
        """A new repository, with a first commit of `files`."""
        self.repos[id] = Repo(id, **facts)
        self.repos[id].commit(files or {}, title="initial commit")
        return self.repos[id]

    def move(self, before: str, after: str) -> None:
        """Rename a repository; the old id leads to the new one."""
        self.repos[after] = self.repos.pop(before)
        self.repos[after].id = after
        self.moved[before] = after

    def object(self, sha256: str) -> bytes | None:
        """A large object, wherever it was uploaded to."""
        known = self.objects.get(sha256)
        if known is None:
            known = next((file.content for file in self._files() if file.sha256 == sha256), None)
        if known is None and self.xet_folder is not None:
            known = xet.read(self.xet_folder, sha256)
        return known

    def _files(self) -> Iterator[Any]:
        for repo in self.repos.values():
            for commit in repo.commits.values():
                yield from commit.files.values()

    def fail(self, pattern: str, change: Change, *, times: int = 1, handled: bool = True) -> None:
        """From now on the next `times` requests that `METHOD /path` matches are answered wrongly.

        handled: off, and the request has no effect either.
        """
        self.faults.append(Fault(pattern, change, times, handled))

    @contextmanager
    def recorded(self) -> Iterator[list[str]]:
        """The requests made in the block, as `METHOD /path`; the list is filled when the block ends."""
        start, seen = len(self.requests), list[str]()
        yield seen
        seen.extend(map(str, self.requests[start:]))

    @contextmanager
    def gone(self) -> Iterator[None]:
        """Nobody listens on the port while the block runs; then the server is back, with all it had."""
        self._stop()
        yield
        self._listen()
        self._start()

    def _listen(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", self._port))
        self._port = self._socket.getsockname()[1]
        config = uvicorn.Config(
            self._answer, interface="asgi3", lifespan="off", ws="none", log_level="critical", timeout_keep_alive=75,
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def _start(self) -> None:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)

    def _stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        raw = scope["raw_path"].decode()
        token = request.headers.get("authorization", "").removeprefix("Bearer ") or None
        body = await request.body()
        self.requests.append(Asked(request.method, raw, request.headers.get("range"), token, len(body)))
        fault = next((f for f in self.faults if f.times and re.search(f.pattern, f"{request.method} {raw}")), None)
        right = Response(b"nothing was done")
        if fault is None or fault.handled:
            parts = tuple(unquote(part) for part in raw.strip("/").split("/"))
            ask = Ask(
                self, request.method, parts, [*request.query_params.multi_items()], dict(request.headers), body,
                self.accounts.get(token or ""),
            )  # fmt: skip
            try:
                right = await asyncio.to_thread(self._right, ask, token)
            except Exception as error:
                self.crashes.append(error)
                raise
        answer: Response | None = right
        if fault is not None:
            fault.times -= 1
            answer = await asyncio.to_thread(fault.change, right)
        if answer is not None:
            await answer(scope, receive, send)
        else:
            await _half(right, send)

    def _right(self, ask: Ask, token: str | None) -> Response:
        if token is not None and ask.account is None:
            return error(401, BAD_TOKEN)
        with self._lock:
            try:
                return routes.answer(ask)
            except Refused as refused:
                return refused.answer


async def _half(right: Response, send: Send) -> None:
    """Announce the whole body, send the first half of it, and leave."""
    await send({"type": "http.response.start", "status": right.status_code, "headers": right.raw_headers})
    await send({"type": "http.response.body", "body": bytes(right.body)[: len(right.body) // 2]})
