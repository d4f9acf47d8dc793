"""How a repository on the Hub is named: `user/repo[@revision][:file]`. Standard library only: nothing is asked of the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lorahub.errors import UsageError, VerificationError

_PATTERN = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w./-]+))?(?::(?P<file>[^:]+))?", re.ASCII)
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
_FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True)
class HubReference:
    """A repository, and of it a revision (branch, tag or commit; None is the default branch) and a file (None: the one)."""

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        return f"{self.with_file('')}{':' + self.file if self.file else ''}"

    def with_file(self, file: str) -> str:
        """How this reference is written when it names that file."""
        return f"{self.repo}{'@' + self.revision if self.revision else ''}{':' + file if file else ''}"


def reads_as_hub(text: str) -> bool:
    """Whether the text reads as `user/repo[@revision][:file]` and not as the path of a weights file."""
    match = _PATTERN.fullmatch(text)
    return match is not None and not match["repo"].lower().endswith(_FILE_SUFFIXES)


def parse(text: str) -> HubReference:
    """The repository that the text names. Raises UsageError when it is not written as `user/repo[@revision][:file]`."""
    match = _PATTERN.fullmatch(text)
    if not match:
        raise UsageError(f"{text!r} is no Hub reference: expected user/repo[@revision][:file]")
    return HubReference(match["repo"], match["revision"], match["file"])


def check_file_name(name: str, repo: str) -> None:
    """Raises VerificationError for a name of a file in a repository that is not one, or means a device, somewhere.

    The client refuses paths that lead out of the repository; what only some systems take for something else is left to us.
    """
    parts = name.split("/")
    for part in parts:
        if (
            part in ("", ".", "..")
            or _RESERVED.fullmatch(part)
            or part.endswith((".", " "))
            or len(part.encode("utf-8", "replace")) > 255
            or any(character in '\\:*?"<>|' or not character.isprintable() for character in part)
        ):
            raise VerificationError(
                f"{repo} holds a file with a name that is not safe to write, {name[:100]!a}: refused"
            )
