"""What a Hub does wrong, on demand: each is made of the right answer, or instead of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.responses import JSONResponse, Response

Change = Callable[[Response], Response | None]
"""What a fault makes of the right answer; None closes the connection in the middle of the body."""


@dataclass
class Fault:
    """Changes the next `times` answers to requests whose `METHOD /path` the pattern is found in.

    handled: the request has its effect all the same (a lost reply); else it is as if it never came.
    """

    pattern: str
    change: Change
    times: int = 1
    handled: bool = True


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
    """The right answer, late."""

    def wait(right: Response) -> Response:
        time.sleep(seconds)
        return right

    return wait
