"""Names for the shell to complete: quick, silent, and read-only. A registry is looked at, never opened or made.

The shell asks while a person types, so this speaks to the database with its bare driver (SQLAlchemy takes longer to
import than a key stroke may), and whatever goes wrong means that there is nothing to propose.
"""

from __future__ import annotations

import sqlite3
import unicodedata
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lorahub.errors import LorahubError
from lorahub.workspace.settings import Settings, settings
from registry.home import DATABASE, default_home

LIMIT = 200
_LIVE = "EXISTS (SELECT 1 FROM version v WHERE v.adapter_id = a.id AND v.deleted_at IS NULL)"
_NAMES = (
    f"SELECT a.name FROM adapter a WHERE substr(a.name_key, 1, ?) = ? AND {_LIVE} ORDER BY a.name_key LIMIT {LIMIT}"
)
_VERSIONS = (
    "SELECT v.number FROM version v JOIN adapter a ON a.id = v.adapter_id "
    f"WHERE a.name_key = ? AND v.deleted_at IS NULL ORDER BY v.number DESC LIMIT {LIMIT}"
)
_ALIASES = (
    "SELECT l.alias FROM alias l JOIN adapter a ON a.id = l.adapter_id "
    f"WHERE a.name_key = ? ORDER BY l.alias LIMIT {LIMIT}"
)
Ask = Callable[[str, tuple[Any, ...]], list[Any]]


def complete(incomplete: str) -> list[str]:
    """References that begin with `incomplete`: names, after a colon versions, after an @ aliases. Never an error."""
    try:
        used = settings()
        return _on_server(used.database_url, incomplete) if used.database_url else _in_file(used, incomplete)
    except (LorahubError, OSError, sqlite3.Error, ImportError, UnicodeError):
        return []


def _in_file(used: Settings, incomplete: str) -> list[str]:
    path = (used.home or default_home()) / DATABASE
    if not path.is_file():
        return []
    with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=0.2)) as connection:
        return _references(lambda query, values: [row[0] for row in connection.execute(query, values)], incomplete)


def _on_server(url: str, incomplete: str) -> list[str]:
    import psycopg

    address = "postgresql://" + url.partition("://")[2]
    try:
        with psycopg.connect(address, connect_timeout=2, options="-c statement_timeout=1000") as connection:
            return _references(
                lambda query, values: [row[0] for row in connection.execute(query.replace("?", "%s"), values)],
                incomplete,
            )
    except psycopg.Error:
        return []


def _references(ask: Ask, incomplete: str) -> list[str]:
    for sign, query in ((":", _VERSIONS), ("@", _ALIASES)):
        name, found, _ = incomplete.partition(sign)
        if found:
            proposals = [f"{name}{sign}{word}" for word in ask(query, (_key(name),))]
            return [proposal for proposal in proposals if proposal.startswith(incomplete)]
    key = _key(incomplete)
    return [name for name in ask(_NAMES, (len(key), key)) if Path(name).name == name]


def _key(name: str) -> str:
    """As `registry.names.name_key`, whose package is not imported here."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
