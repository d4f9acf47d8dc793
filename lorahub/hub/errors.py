"""What the Hub client raises, in lorahub's words and exit codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub import errors as hub

from lorahub.errors import (
    AuthError,
    ConflictError,
    FileFormatError,
    LorahubError,
    NetworkError,
    NotFoundError,
    UsageError,
)

_BY_STATUS: dict[int, tuple[type[LorahubError], str]] = {
    401: (AuthError, "the token is missing or not valid: set HF_TOKEN or run `hf auth login`"),
    403: (AuthError, "the token may not do this"),
    404: (NotFoundError, "not found"),
    409: (ConflictError, "it exists already"),
    412: (ConflictError, "the repository changed meanwhile: pull first"),
    429: (NetworkError, "too many requests: try again later"),
}

_BAD_CARD = "Invalid metadata in README.md."
_BUSY = {429: "too many requests", 503: "the Hub answered 503"}

_BY_CLASS: tuple[tuple[type[Exception], type[LorahubError], str], ...] = (
    (hub.GatedRepoError, AuthError, "the repository is gated: ask for access on its page, then set HF_TOKEN"),
    (hub.DisabledRepoError, AuthError, "the Hub has disabled access to the repository"),
    (hub.RepositoryNotFoundError, NotFoundError, "no such repository, or it is private and needs HF_TOKEN"),
    (hub.RevisionNotFoundError, NotFoundError, "no such revision"),
    (hub.RemoteEntryNotFoundError, NotFoundError, "no such file in the repository"),
    (hub.OfflineModeIsEnabled, NetworkError, "HF_HUB_OFFLINE is set, so the Hub was not asked"),
)
"""Subclasses come before their bases."""


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn the client's exceptions into ours: one line that starts with `what`.

    Wraps nothing but calls of the client: a ValueError in here is taken for an answer that no Hub gives.
    """
    try:
        yield
    except (
        httpx2.HTTPError, httpx2.InvalidURL, hub.SafetensorsParsingError, OSError, RuntimeError, ValueError, KeyError,
        TypeError,
    ) as error:  # fmt: skip
        kind, reason = _meaning(error)
        if kind is None:  # our own disk, not the network
            raise
        raise kind(f"{what}: {reason}") from error


def _meaning(error: Exception) -> tuple[type[LorahubError] | None, str]:
    for theirs, ours, reason in _BY_CLASS:
        if isinstance(error, theirs):
            return ours, reason
    if isinstance(error, hub.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return _meaning(error.__cause__)  # the client hides why it fell back on its cache
    if isinstance(error, RuntimeError):  # an upload that failed in a thread of its own
        return _meaning(error.__cause__) if isinstance(error.__cause__, Exception) else (None, "")
    if isinstance(error, hub.SafetensorsParsingError):
        return FileFormatError, "the file is no safetensors file"
    if isinstance(error, (hub.HFValidationError, hub.BadRequestError)):
        return UsageError, _first_line(error)
    if isinstance(error, hub.HfHubHTTPError):
        status, later = error.response.status_code, error.response.headers.get("retry-after", "")
        if status in (429, 503) and later.isdigit():
            return NetworkError, f"{_BUSY[status]}: try again in {later} seconds"
        return _BY_STATUS.get(status, (NetworkError if status >= 500 else LorahubError, f"the Hub answered {status}"))
    if "xet-write-token" in str(error) and "404" in str(error):
        return NetworkError, "this Hub has no Xet storage: set HF_HUB_DISABLE_XET=1"
    if isinstance(error, (httpx2.HTTPError, httpx2.InvalidURL, ConnectionError, hub.LocalEntryNotFoundError)):
        return NetworkError, f"the Hub cannot be reached ({_first_line(error)})"
    if str(error).startswith(_BAD_CARD):
        return UsageError, f"the Hub refuses the card: {' '.join(str(error).removeprefix(_BAD_CARD).split())}"
    if isinstance(error, OSError):
        if error.errno is not None:
            return None, ""
        return NetworkError, _first_line(error)  # a consistency check of the client: the transfer was cut short
    return NetworkError, "the answer does not come from a Hub: look at HF_ENDPOINT, or at a proxy in between"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
