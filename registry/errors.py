"""Every error the registry raises on purpose.

    RegistryError
    |- InvalidError        what was given is malformed: a name, a reference, a fact
    |- NotFoundError       no such adapter, version, alias, blob or registry
    |- AmbiguousError      several things match; `candidates` lists them
    |- ConflictError       something is in the way: a taken name, an alias in use
    |  `- LockedError      another process holds the lock longer than we wait; trying again may help
    |- ReadOnlyError       the registry can be read but not written
    |- UnavailableError    the disk is full, or the server or store does not work
    |  |- UnreachableError  no answer from the server or store; trying again may help
    |  `- DeniedError       the server or store refuses the credentials
    |- NewerSchemaError    the database was written by a newer lorahub
    `- DamagedError        the database or a blob is not what it claims to be

A message is one line: what was expected, what came, what to do. lorahub.workspace translates these to lorahub's own.
"""

from __future__ import annotations


class RegistryError(Exception):
    """Base of all deliberate errors of the registry."""


class InvalidError(RegistryError):
    """What was given is malformed: a name, a reference, a fact."""


class NotFoundError(RegistryError):
    """Something named does not exist."""


class AmbiguousError(RegistryError):
    """Several things match a reference; `candidates` are references that each match one."""

    def __init__(self, message: str, candidates: tuple[str, ...]) -> None:
        super().__init__(message)
        self.candidates = candidates


class ConflictError(RegistryError):
    """Something is in the way: a taken name, an alias in use, a blob that was collected meanwhile."""


class LockedError(ConflictError):
    """Another process holds the database's lock for longer than this one is willing to wait."""


class ReadOnlyError(RegistryError):
    """The registry can be read but not written."""


class UnavailableError(RegistryError):
    """The disk is full, or the database server or blob store does not work."""


class UnreachableError(UnavailableError):
    """The database server or blob store does not answer; trying again may help."""


class DeniedError(UnavailableError):
    """The database server or blob store refuses the credentials."""


class NewerSchemaError(RegistryError):
    """The database was written by a newer lorahub than this one."""


class DamagedError(RegistryError):
    """The database or a blob is not what it claims to be."""
