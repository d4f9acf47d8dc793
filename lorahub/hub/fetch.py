"""Download one adapter from the Hub: pinned to a commit, and hashed by us before it is used.

The client accepts a body of the right size with wrong bytes, so every file is compared with the Hub's own sha256.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download

from lorahub.errors import NotFoundError, UsageError, VerificationError
from lorahub.hub.errors import translated

_REFERENCE = re.compile(
    r"(?P<repo>[\w][\w.-]*/[\w][\w.-]*?)(?:@(?P<revision>[\w./-]+))?(?::(?P<file>[^:]+))?", re.ASCII
)
_USUAL_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")


def is_hub_reference(text: str) -> bool:
    """Whether the text reads as `user/repo[@revision][:file]` and not as a path to a weights file."""
    match = _REFERENCE.fullmatch(text)
    return bool(match) and not match["repo"].endswith((".safetensors", ".pt", ".bin"))  # type: ignore[index]


def fetch(reference: str, *, what: str | None = None) -> Path:
    """The local path of the adapter that `user/repo[@revision][:file]` names, downloaded if it is not cached.

    what: how errors begin, the reference itself unless given.
    Raises NotFoundError, AuthError, NetworkError as the Hub answers; UsageError when the repository holds several
    adapters and none is named; VerificationError when the bytes are not those the Hub announces.
    """
    match = _REFERENCE.fullmatch(reference)
    if not match:
        raise UsageError(f"{reference!r} is no Hub reference: expected user/repo[@revision][:file]")
    with translated(what or reference):
        info = HfApi().model_info(match["repo"], revision=match["revision"], files_metadata=True)
    files = {file.rfilename: file for file in info.siblings or []}
    name = match["file"] or _only_adapter(reference, list(files))
    if name not in files:
        raise NotFoundError(f"{reference}: the repository has no file {name}")
    assert info.sha is not None
    lfs = files[name].lfs
    path = _download(reference, info.sha, name, lfs.sha256 if lfs else None)
    config = name.replace("adapter_model.safetensors", "adapter_config.json")
    if config != name and config in files:
        _download(reference, info.sha, config, None)
    return path


def _only_adapter(reference: str, names: list[str]) -> str:
    for usual in _USUAL_NAMES:
        if usual in names:
            return usual
    adapters = [name for name in names if name.endswith(".safetensors")]
    if len(adapters) == 1:
        return adapters[0]
    if adapters:
        listed = ", ".join(adapters[:5])
        raise UsageError(
            f"{reference} holds {len(adapters)} adapters ({listed}): name one as {reference}:{adapters[0]}"
        )
    raise NotFoundError(f"{reference} holds no .safetensors file")


def _download(reference: str, commit: str, name: str, sha256: str | None) -> Path:
    repo = reference.partition("@")[0].partition(":")[0]
    for attempt in (1, 2):
        with translated(reference):
            path = Path(hf_hub_download(repo, name, revision=commit, force_download=attempt > 1))
        if sha256 is None or _sha256(path) == sha256:
            return path
        path.resolve().unlink()  # the blob behind the cache's link, so that nobody else takes it for good
    raise VerificationError(f"{reference}: {name} was downloaded twice and does not have the sha256 the Hub announces")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
