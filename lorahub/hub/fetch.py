"""Download one adapter from the Hub, with the configuration it needs, into the client's cache."""

from __future__ import annotations

from pathlib import Path

from lorahub.hub.reference import parse
from lorahub.hub.repository import choose, download, look, peft_config


def fetch(reference: str, *, what: str | None = None) -> Path:
    """The local path of the adapter that `user/repo[@revision][:file]` names, downloaded if it is not cached.

    what: how errors begin, the reference itself unless given.
    Raises NotFoundError, AuthError, NetworkError as the Hub answers; UsageError when the repository holds several
    adapters and none is named; VerificationError when the bytes are not those the Hub announces.
    """
    wanted = parse(reference)
    snapshot = look(wanted.repo, wanted.revision, what=what or reference)
    file = choose(snapshot, wanted)
    path = download(snapshot, file, what=reference)
    config = peft_config(snapshot, file)
    if config is not None:
        download(snapshot, config, what=reference)
    return path
