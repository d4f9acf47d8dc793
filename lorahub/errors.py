"""Every error lorahub raises on purpose, and the exit code the command line gives it.

    LorahubError              1  failed
    |- UsageError             2  the request itself is malformed
    |- AuthError              3  credentials missing or refused
    |- NotFoundError          4  no such file, adapter, base or repository
    |- NetworkError           5  try again later
    |- ConflictError          6  something is in the way: an existing file, a lock
    |- VerificationError      7  the result, or the input, is not what it claims to be
    |- PartialError           8  part of the work was done, or the answer is inconclusive
    |- FileFormatError        1  the file cannot be read as an adapter
    |- BaseMismatchError      1  adapters of different bases, or unknown layers of a base
    `- NotAdditiveError       1  a recognised adapter that is no vector (DoRA, OFT, ...)

A message is one line: what was expected, what came, what to do.
"""

from __future__ import annotations


class LorahubError(Exception):
    """Base of all deliberate errors; `exit_code` is what the command line exits with."""

    exit_code: int = 1


class UsageError(LorahubError):
    """The request is malformed: a bad expression, contradictory options."""

    exit_code = 2


class AuthError(LorahubError):
    """Credentials are missing, wrong, or not enough."""

    exit_code = 3


class NotFoundError(LorahubError):
    """Something named does not exist."""

    exit_code = 4


class NetworkError(LorahubError):
    """The network or a server failed; trying again may help."""

    exit_code = 5


class ConflictError(LorahubError):
    """Something is in the way: an existing file, a lock, a change on the other side."""

    exit_code = 6


class VerificationError(LorahubError):
    """A file or a result is not what it claims to be (NaN, overflow, wrong hash, read-back differs)."""

    exit_code = 7


class PartialError(LorahubError):
    """Only part of the work was done, or the answer is inconclusive."""

    exit_code = 8


class FileFormatError(LorahubError):
    """The file is damaged, or holds nothing lorahub can read as an adapter."""


class BaseMismatchError(LorahubError):
    """Adapters of different bases were mixed, or layers do not belong to the base."""


class NotAdditiveError(LorahubError):
    """The adapter is recognised but is not a vector: its effect depends on the base's weights."""
