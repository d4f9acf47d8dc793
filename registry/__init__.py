"""A catalogue of facts about adapter files, and of how one adapter was made from others.

It knows no tensors and imports neither torch nor lorahub. Names are imported on first use (PEP 562), so that
`import registry` costs nothing and the error tree can be caught without SQLAlchemy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from registry.blobs import Blob, BlobStore, LocalBlobs, open_blobs
    from registry.errors import (
        AmbiguousError,
        ConflictError,
        DamagedError,
        DeniedError,
        InvalidError,
        LockedError,
        NewerSchemaError,
        NotFoundError,
        ReadOnlyError,
        RegistryError,
        UnavailableError,
        UnreachableError,
    )
    from registry.home import default_home
    from registry.names import suggest_name
    from registry.records import (
        KINDS,
        AdapterRecord,
        AliasChange,
        Edge,
        Facts,
        Info,
        Lineage,
        Location,
        Parent,
        Recipe,
        Remote,
        RunSettings,
        Sketch,
        Validation,
        VersionRecord,
    )
    from registry.references import Reference, parse_reference
    from registry.remote_blobs import RemoteBlobs
    from registry.store import Registry

_HOME = {
    "registry.blobs": ("Blob", "BlobStore", "LocalBlobs", "open_blobs"),
    "registry.errors": (
        "AmbiguousError",
        "ConflictError",
        "DamagedError",
        "DeniedError",
        "InvalidError",
        "LockedError",
        "NewerSchemaError",
        "NotFoundError",
        "ReadOnlyError",
        "RegistryError",
        "UnavailableError",
        "UnreachableError",
    ),
    "registry.home": ("default_home",),
    "registry.names": ("suggest_name",),
    "registry.records": (
        "KINDS",
        "AdapterRecord",
        "AliasChange",
        "Edge",
        "Facts",
        "Info",
        "Lineage",
        "Location",
        "Parent",
        "Recipe",
        "Remote",
        "RunSettings",
        "Sketch",
        "Validation",
        "VersionRecord",
    ),
    "registry.remote_blobs": ("RemoteBlobs",),
    "registry.references": ("Reference", "parse_reference"),
    "registry.store": ("Registry",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "KINDS",
    "AdapterRecord",
    "AliasChange",
    "AmbiguousError",
    "Blob",
    "BlobStore",
    "ConflictError",
    "DamagedError",
    "DeniedError",
    "Edge",
    "Facts",
    "Info",
    "InvalidError",
    "Lineage",
    "LocalBlobs",
    "Location",
    "LockedError",
    "NewerSchemaError",
    "NotFoundError",
    "Parent",
    "ReadOnlyError",
    "Recipe",
    "Reference",
    "Registry",
    "RegistryError",
    "Remote",
    "RemoteBlobs",
    "RunSettings",
    "Sketch",
    "UnavailableError",
    "UnreachableError",
    "Validation",
    "VersionRecord",
    "default_home",
    "open_blobs",
    "parse_reference",
    "suggest_name",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'registry' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value
