"""What a Hub keeps: model repositories with their history, and the large objects that their commits point at."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

LARGE = (".safetensors", ".bin", ".pt", ".png")
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE).encode()
"""What a new repository begins with."""


@dataclass(frozen=True)
class File:
    """One file at one commit; weights and images are stored with LFS, everything else in git."""

    path: str
    content: bytes
    xet_hash: str | None = None

    @property
    def in_lfs(self) -> bool:
        return self.path.endswith(LARGE)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob_id(self) -> str:
        """The git id: of the file, or of the pointer that stands for it."""
        stored = self.content
        if self.in_lfs:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(stored)}\n"
            stored = pointer.encode()
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def oid(self) -> str:
        """What the client compares with its own file before it uploads."""
        return self.sha256 if self.in_lfs else self.blob_id

    def described(self, blobs: bool) -> dict[str, object]:
        """As the facts of a repository list it."""
        facts: dict[str, object] = {"rfilename": self.path}
        if blobs:
            facts |= {"size": len(self.content), "blobId": self.blob_id}
            if self.in_lfs:
                facts["lfs"] = {"sha256": self.sha256, "size": len(self.content), "pointerSize": 130}
        return facts

    def entry(self) -> dict[str, object]:
        """As a tree lists it."""
        entry: dict[str, object] = {"type": "file", "path": self.path, "size": len(self.content), "oid": self.blob_id}
        if self.in_lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 130}
        return entry | ({"xetHash": self.xet_hash} if self.xet_hash else {})

    def headers(self, commit: str) -> dict[str, str]:
        """Of an answer that brings it."""
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if self.in_lfs:
            return headers | {
                "ETag": f'"{self.sha256}"',
                "X-Linked-Etag": f'"{self.sha256}"',
                "X-Linked-Size": str(len(self.content)),
            }
        return headers | {"ETag": f'"{self.blob_id}"'}


@dataclass(frozen=True)
class Commit:
    """All files at one point of the history."""

    sha: str
    parent: str | None
    title: str
    files: Mapping[str, File]


@dataclass
class Repo:
    """A model repository: commits by sha, and names for some of them."""

    id: str
    private: bool = False
    gated: bool = False
    downloads: int = 0
    likes: int = 0
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[str, str] = field(default_factory=dict)
    """refs/pr/N -> commit"""

    def commit(
        self, files: Mapping[str, bytes | File], *, branch: str = "main", title: str = "a commit", pr: bool = False
    ) -> str:
        """Add a commit that holds exactly these files, and move the branch (or with `pr` a new pull request) to it."""
        stored = {path: file if isinstance(file, File) else File(path, file) for path, file in files.items()}
        identity = "".join(f"{path}{file.sha256}" for path, file in stored.items())
        sha = hashlib.sha1(f"{self.id}{len(self.commits)}{identity}".encode()).hexdigest()
        self.commits[sha] = Commit(sha, self.branches.get(branch), title, stored)
        if pr:
            self.pull_requests[f"refs/pr/{len(self.pull_requests) + 1}"] = sha
        else:
            self.branches[branch] = sha
        return sha

    def change(self, files: Mapping[str, bytes], *, branch: str = "main", title: str = "a change") -> str:
        """Add a commit that replaces or adds these files and keeps the others."""
        return self.commit({**self.files(branch), **files}, branch=branch, title=title)

    def files(self, revision: str = "main") -> dict[str, File]:
        """The files at a revision."""
        return dict(self.commits[self.resolve(revision) or ""].files)

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, a tag, a pull request or a sha names."""
        for names in (self.branches, self.tags, self.pull_requests):
            if revision in names:
                return names[revision]
        return revision if revision in self.commits else None

    def history(self, revision: str) -> Iterator[Commit]:
        """The commit and those before it, the newest first."""
        sha = self.resolve(revision)
        while sha is not None:
            yield self.commits[sha]
            sha = self.commits[sha].parent

    @property
    def card(self) -> dict[str, Any]:
        """The YAML at the beginning of the newest README.md."""
        readme = self.files().get("README.md")
        return front_matter(readme.content.decode()) if readme else {}

    @property
    def labels(self) -> list[str]:
        """What the Hub makes of the card to search by."""
        card = self.card
        labels = [*card.get("tags", ())]
        labels += [card["library_name"]] if "library_name" in card else []
        bases = card.get("base_model", [])
        for base in [bases] if isinstance(bases, str) else bases:
            labels += [f"base_model:{base}", f"base_model:{card.get('base_model_relation', 'finetune')}:{base}"]
        labels += [f"license:{card['license']}"] if "license" in card else []
        return [*labels, "region:us"]


def front_matter(text: str) -> dict[str, Any]:
    """The YAML between two lines of dashes; raises yaml.YAMLError."""
    if not text.startswith("---\n"):
        return {}
    content = yaml.safe_load(text[4:].partition("\n---")[0])
    if not isinstance(content, dict):
        raise yaml.YAMLError("expected a mapping")
    return content


def safetensors_header(content: bytes) -> Any:
    """The JSON at the beginning of a safetensors file."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])
