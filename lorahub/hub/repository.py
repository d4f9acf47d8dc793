"""What a repository on the Hub holds at one commit, found out without downloading it.

The rule: everything that follows from one look is pinned to the commit that was looked at, and every byte that is
downloaded is compared with the hash the Hub announces: the client accepts a body of the right size with wrong bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi

from lorahub.errors import NotFoundError, UsageError, VerificationError
from lorahub.hub.bars import bars
from lorahub.hub.errors import translated
from lorahub.hub.reference import HubReference, check_file_name

USUAL_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")


@dataclass(frozen=True)
class RemoteFile:
    """One file: `blob_id` is its git id; `sha256` is known of large files only."""

    path: str
    size: int
    blob_id: str
    sha256: str | None

    def is_same(self, content: Path | bytes) -> bool:
        """Whether these bytes are this file's."""
        return fingerprint(content, large=self.sha256 is not None) == (self.sha256 or self.blob_id)


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit. `repo` is its present name: it may have been asked for by an older one."""

    repo: str
    commit: str
    private: bool
    files: Mapping[str, RemoteFile]
    card: Mapping[str, Any] = field(default_factory=dict)
    """The YAML of its README.md."""

    def sha256(self, path: str) -> str | None:
        """Of a large file; None when there is no such file."""
        file = self.files.get(path)
        return file.sha256 if file else None


def look(repo: str, revision: str | None = None, *, what: str | None = None) -> Snapshot:
    """What the repository holds at a branch, tag or commit (None: the default branch).

    what: how errors begin, the repository unless given.
    Raises NotFoundError, AuthError and NetworkError as the Hub answers.
    """
    with translated(what or repo):
        try:
            info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        except httpx2.RemoteProtocolError:  # a connection kept from before, which the server closed meanwhile
            info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        files = {
            file.rfilename: RemoteFile(
                file.rfilename, int(file.size or 0), str(file.blob_id), file.lfs.sha256 if file.lfs else None
            )
            for file in info.siblings or []
        }
        card = info.card_data.to_dict() if info.card_data else {}  # type: ignore[no-untyped-call]
        return Snapshot(info.id, str(info.sha), bool(info.private), files, card)


def choose(snapshot: Snapshot, wanted: HubReference) -> RemoteFile:
    """The adapter file that is meant: the one named, else the one of the usual name, else the only one.

    Raises NotFoundError when there is none, UsageError when several could be meant, VerificationError for a name that
    is no file name everywhere.
    """
    files = snapshot.files
    name = wanted.file or _only_adapter(wanted, files)
    if name not in files:
        raise NotFoundError(f"{wanted}: the repository has no such file; it holds {_listed(files) or 'none'}")
    check_file_name(name, snapshot.repo)
    return files[name]


def peft_config(snapshot: Snapshot, file: RemoteFile) -> RemoteFile | None:
    """The configuration beside the weights that PEFT saves, without which they have no scale."""
    config = file.path.replace("adapter_model.safetensors", "adapter_config.json")
    return snapshot.files.get(config) if config != file.path else None


def download(snapshot: Snapshot, file: RemoteFile, *, what: str | None = None) -> Path:
    """The local path of a file, downloaded into the client's cache unless it is there; its bytes have the announced hash.

    Raises VerificationError when the bytes are wrong twice; NetworkError, AuthError and NotFoundError as the Hub answers.
    """
    what = what or snapshot.repo
    check_file_name(file.path, snapshot.repo)
    for _ in range(2):
        with translated(what), bars():
            path = Path(HfApi().hf_hub_download(snapshot.repo, file.path, revision=snapshot.commit))
        if file.is_same(path):
            return path
        with contextlib.suppress(FileNotFoundError):
            # The blob behind the cache's link goes too, so that nobody else takes it for good.
            path.resolve().unlink()
            path.unlink()
    raise VerificationError(f"{what}: {file.path} was downloaded twice and does not have the hash the Hub announces")


def fingerprint(content: Path | bytes, *, large: bool) -> str:
    """The hash by which the Hub knows these bytes: sha256 of large files, the git blob id of others."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    digest = hashlib.sha256() if large else hashlib.sha1(f"blob {size}\0".encode())
    if isinstance(content, bytes):
        digest.update(content)
    else:
        with content.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _only_adapter(wanted: HubReference, files: Mapping[str, object]) -> str:
    for usual in USUAL_NAMES:
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


def _listed(names: Iterable[str]) -> str:
    shown = [*names]
    return ", ".join([*shown[:5], "..."] if len(shown) > 5 else shown)
