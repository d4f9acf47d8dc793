"""What was computed once, kept on disk: small groups of tensors under a key, in safetensors shards.

The rule: a key is the hash of everything its tensors depend on, so an entry is never stale, only unused; and an entry
that is not found or not whole is computed again, so nothing but time depends on the cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lorahub import header
from lorahub.errors import FileFormatError, LorahubError
from lorahub.files.reading import tensors_sha256
from lorahub.files.store import replacing, tensor_bytes

Entry = Mapping[str, Tensor]

_PREFIX = "lorahub-cache-"
_OPEN_SHARDS = 32
_SHARD_BYTES = 64 * 2**20
_SHARD_ENTRIES = 2048
_log = logging.getLogger(__name__)


class Cache:
    """The shards of one folder; a context manager, which writes what is pending when it ends.

    Several processes may share the folder: each writes shards of its own, all under names that appear only when whole.
    In memory are the keys, and at most one shard's worth of entries that are not written yet.
    """

    def __init__(self, folder: Path, *, shard_bytes: int = _SHARD_BYTES) -> None:
        """Index the folder, which is made if it is not there; damaged shards are removed with a logged warning."""
        self.folder = folder
        self._shard_bytes = shard_bytes
        self._places: dict[str, Path] = {}
        self._seen: set[Path] = set()
        self._open: OrderedDict[Path, tuple[Any, dict[str, Any]]] = OrderedDict()
        self._pending: dict[str, dict[str, Tensor]] = {}
        self._pending_bytes = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LorahubError(f"cannot make the cache folder {folder}: {error.strerror}") from None
        self.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

    def __contains__(self, key: str) -> bool:
        return key in self._pending or key in self._places

    def __len__(self) -> int:
        return len(self._pending) + len(self._places)

    def refresh(self) -> None:
        """Take notice of the shards that other processes have written."""
        for path in sorted(set(self.folder.glob(f"{_PREFIX}*.safetensors")) - self._seen):
            self._seen.add(path)
            try:
                entries = json.loads(header.read(path).metadata["entries"])
                self._places.update(dict.fromkeys(entries, path))
            except (FileFormatError, KeyError, ValueError) as error:
                _log.warning("%s is damaged and removed, its entries are made again (%s)", path, error)
                path.unlink(missing_ok=True)

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors under a key, on the CPU; None when they are not there, or not as they were written."""
        if key in self._pending:
            return self._pending[key]
        path = self._places.get(key)
        if path is None:
            return None
        with suppress(SafetensorError, OSError, KeyError):
            shard, entries = self._shard(path)
            check, *names = entries[key]
            found = {name: shard.get_tensor(f"{key}/{name}") for name in names}
            if _checksum(found) == check:
                return found
        _log.warning("an entry of %s is damaged and made again", path)
        del self._places[key]
        return None

    def put(self, key: str, tensors: Entry) -> None:
        """Keep tensors under a key; they are on disk after `flush`, or when enough have come together."""
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        self._places.pop(key, None)
        self._pending[key] = kept
        self._pending_bytes += sum(tensor.nbytes for tensor in kept.values())
        if self._pending_bytes >= self._shard_bytes or len(self._pending) >= _SHARD_ENTRIES:
            self.flush()

    def flush(self) -> None:
        """Write the pending entries as one shard. Raises LorahubError when the disk refuses."""
        if not self._pending:
            return
        path = self.folder / f"{_PREFIX}{uuid4().hex}.safetensors"
        tensors = {f"{key}/{name}": each for key, entry in self._pending.items() for name, each in entry.items()}
        entries = {key: [_checksum(entry), *entry] for key, entry in self._pending.items()}
        with replacing(path, force=False) as temporary:
            save_file(tensors, temporary, {"entries": json.dumps(entries)})
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        self._seen.add(path)
        self._places.update(dict.fromkeys(entries, path))
        self._pending, self._pending_bytes = {}, 0

    def _shard(self, path: Path) -> tuple[Any, dict[str, Any]]:
        """An open shard and its table of entries; the ones used last stay open."""
        if path not in self._open:
            shard: Any = safe_open(path, framework="pt")
            self._open[path] = (shard, json.loads(shard.metadata()["entries"]))
        self._open.move_to_end(path)
        if len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)
        return self._open[path]


def key_of(*parts: object) -> str:
    """The key under which to keep what depends on these parts: the sha256 of their JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def model_hash(model: nn.Module) -> str:
    """What tells a model from another: its class, configuration, and the bytes of its weights."""
    config = getattr(model, "config", {})
    plain = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    settings = {name: value for name, value in plain.items() if not name.startswith("_")}
    return key_of(type(model).__name__, settings, tensors_sha256(model.state_dict()))


def _checksum(tensors: Entry) -> int:
    """CRC-32 over names, dtypes, shapes and bytes."""
    total = 0
    for name, tensor in sorted(tensors.items()):
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode(), total)
        total = zlib.crc32(tensor_bytes(tensor), total)
    return total
