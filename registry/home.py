"""Where a registry lies, and whether there is one. Standard library only: answering costs nothing and makes nothing."""

from __future__ import annotations

import os
from pathlib import Path

DATABASE = "registry.db"
JOURNAL = "journal.jsonl"
"""What `rebuild` makes a database from."""


def default_home() -> Path:
    """`$LORAHUB_HOME`, or lorahub's place in the platform's folder for user data."""
    chosen = os.environ.get("LORAHUB_HOME")
    if chosen:
        return Path(chosen).expanduser()
    from platformdirs import user_data_path

    return user_data_path("lorahub", appauthor=False)


def exists(home: Path | None = None) -> bool:
    """Whether there is a registry in a folder, whole or damaged."""
    home = (home or default_home()).expanduser().absolute()
    there = any(home.glob(f"{DATABASE}*")) or (home / JOURNAL).exists()
    return there or any((home / "store" / "sha256").glob("??/*"))
