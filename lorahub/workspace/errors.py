"""What the registry raises, in lorahub's words and exit codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lorahub.errors import (
    AuthError,
    ConflictError,
    LorahubError,
    NetworkError,
    NotFoundError,
    PartialError,
    UsageError,
    VerificationError,
)
from registry import errors as registry

_OURS: tuple[tuple[type[registry.RegistryError], type[LorahubError]], ...] = (
    (registry.InvalidError, UsageError),
    (registry.NotFoundError, NotFoundError),
    (registry.AmbiguousError, PartialError),
    (registry.ConflictError, ConflictError),
    (registry.NewerSchemaError, ConflictError),
    (registry.DamagedError, VerificationError),
    (registry.UnreachableError, NetworkError),
    (registry.DeniedError, AuthError),
)


@contextmanager
def translated() -> Iterator[None]:
    """Turn the registry's errors into lorahub's; what has no closer kin becomes a LorahubError."""
    try:
        yield
    except registry.RegistryError as error:
        kind = next((ours for theirs, ours in _OURS if isinstance(error, theirs)), LorahubError)
        raise kind(str(error)) from error
