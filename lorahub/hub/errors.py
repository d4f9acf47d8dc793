"""What the Hub client raises, in lorahub's words and exit codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub import errors as hub

from lorahub.errors import AuthError, ConflictError, LorahubError, NetworkError, NotFoundError, UsageError

_BY_STATUS: dict[int, tuple[type[LorahubError], str]] = {
    401: (AuthError, "not signed in: set HF_TOKEN or run `hf auth login`"),
    403: (AuthError, "the token may not do this"),
    404: (NotFoundError, "not found"),
    409: (ConflictError, "it exists already"),
    412: (ConflictError, "the repository changed meanwhile: pull first"),
    429: (NetworkError, "too many requests: try again later"),
}


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn the client's exceptions into ours: one line that starts with `what`."""
    try:
        yield
    except hub.GatedRepoError as error:
        raise AuthError(f"{what}: the repository is gated; ask for access on its page first") from error
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError, hub.RemoteEntryNotFoundError) as error:
        reason = {
            hub.RepositoryNotFoundError: "no such repository, or it is private and needs HF_TOKEN",
            hub.RevisionNotFoundError: "no such revision",
        }.get(type(error), "no such file in the repository")
        raise NotFoundError(f"{what}: {reason}") from error
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        raise NetworkError(f"{what}: not in the local cache, and the Hub cannot be reached") from error
    except hub.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        kind, reason = _BY_STATUS.get(status, (NetworkError if status >= 500 else LorahubError, f"HTTP {status}"))
        raise kind(f"{what}: {reason}") from error
    except (hub.HFValidationError, hub.BadRequestError) as error:
        raise UsageError(f"{what}: {str(error).splitlines()[0]}") from error
    except (httpx2.TransportError, ConnectionError, hub.FileMetadataError) as error:
        raise NetworkError(
            f"{what}: the Hub cannot be reached ({str(error).splitlines()[0] or type(error).__name__})"
        ) from error
