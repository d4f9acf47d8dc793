"""Download one adapter from the Hub: pinned to a commit, and hashed by us before it is used.

The client accepts a body of the right size with wrong bytes, so every file is compared with the hash the Hub announces.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoSibling

from lorahub.errors import NotFoundError, UsageError, VerificationError
from lorahub.hub.errors import translated
from lorahub.hub.reference import HubReference, parse

_USUAL_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")


def fetch(reference: str, *, what: str | None = None) -> Path:
    """The local path of the adapter that `user/repo[@revision][:file]` names, downloaded if it is not cached.

    what: how errors begin, the reference itself unless given.
    Raises NotFoundError, AuthError, NetworkError as the Hub answers; UsageError when the repository holds several
    adapters and none is named; VerificationError when the bytes are not those the Hub announces.
    """
    wanted = parse(reference)
    api = HfApi()
    with translated(what or reference):
        info = api.model_info(wanted.repo, revision=wanted.revision, files_metadata=True)
    files = {file.rfilename: file for file in info.siblings or []}
    name = wanted.file or _only_adapter(wanted, files)
    if name not in files:
        raise NotFoundError(f"{wanted}: the repository has no such file; it holds {_listed(files) or 'none'}")
    pinned = replace(wanted, revision=info.sha)
    path = _download(api, reference, pinned, files[name])
    config = name.replace("adapter_model.safetensors", "adapter_config.json")
    if config != name and config in files:
        _download(api, reference, pinned, files[config])
    return path


def _only_adapter(wanted: HubReference, files: Mapping[str, object]) -> str:
    for usual in _USUAL_NAMES:
        if usual in files:
            return usual
    adapters = [name for name in files if name.endswith(".safetensors")]
    if len(adapters) == 1:
        return adapters[0]
    if adapters:
        listed = _listed(adapters)
        named = wanted.with_file(adapters[0])
        raise UsageError(f"{wanted} holds {len(adapters)} adapters ({listed}): name one, such as {named}")
    raise NotFoundError(f"{wanted} holds no .safetensors file; it holds {_listed(files) or 'nothing'}")


def _listed(names: Mapping[str, object] | list[str]) -> str:
    shown = [*names][:5]
    return ", ".join([*shown, "..."] if len(names) > len(shown) else shown)


def _download(api: HfApi, reference: str, pinned: HubReference, file: RepoSibling) -> Path:
    for _ in range(2):
        with translated(reference):
            path = Path(api.hf_hub_download(pinned.repo, file.rfilename, revision=pinned.revision))
        if _is_intact(path, file):
            return path
        with contextlib.suppress(FileNotFoundError):
            # The blob behind the cache's link goes too, so that nobody else takes it for good.
            path.resolve().unlink()
            path.unlink()
    raise VerificationError(
        f"{reference}: {file.rfilename} was downloaded twice and does not have the hash the Hub announces"
    )


def _is_intact(path: Path, file: RepoSibling) -> bool:
    """Whether the bytes have the sha256 (of LFS files) or the git blob id (of others) that the Hub announces."""
    digest = hashlib.sha256() if file.lfs else hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == (file.lfs.sha256 if file.lfs else file.blob_id)
