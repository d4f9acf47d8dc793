"""Full-text search behind one function: FTS5 on SQLite, an inverted index on PostgreSQL, LIKE where FTS5 is absent.

Text and query are cut into words by the same Python, so no database's query syntax is ever spoken by a user, and all
three find the same rows. A bare word matches as a prefix, a "quoted phrase" exactly, and everything must match.
"""

from __future__ import annotations

import re
import unicodedata

from sqlalchemy import ColumnElement, Select, and_, column, delete, func, insert, literal, select, table, text
from sqlalchemy.orm import Session

from registry.errors import InvalidError
from registry.models import Adapter, LocationRow, SearchText, Tag, Version
from registry.rows import in_force

MAX_WORD = 60  # PostgreSQL refuses words of more than 2 kB; nobody types more than this
MAX_BODY = 100_000
MAX_TERMS = 32
_INDEX = table("search_index", column("rowid"), column("rank"))


def words(value: str) -> list[str]:
    """The words of a text: runs of letters and digits, without case and accents."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", value) if unicodedata.category(c) != "Mn")
    return [word[:MAX_WORD] for word in re.findall(r"[^\W_]+", plain.casefold())]


def terms(query: str) -> list[tuple[str, ...]]:
    """What must all be found: one word is a prefix, more are a phrase (a quoted single word ends with '').

    Raises:
        InvalidError: the query holds no word, or too many.
    """
    found: list[tuple[str, ...]] = []
    for index, part in enumerate(query.split('"')):
        if index % 2 and words(part):
            phrase = words(part)
            found.append(tuple(phrase) if len(phrase) > 1 else (phrase[0], ""))
        elif not index % 2:
            found.extend((word,) for word in words(part))
    if not found or sum(map(len, found)) > MAX_TERMS:
        raise InvalidError(f"expected 1 to {MAX_TERMS} words to search for, got {query[:80]!a}")
    return found


def narrow(session: Session, query: Select[int], asked: str) -> Select[int]:
    """A query on Adapter, narrowed to those that match `asked`, best first; raises InvalidError like `terms`."""
    wanted = terms(asked)
    if session.connection().dialect.name == "postgresql":
        vector = func.array_to_tsvector(func.string_to_array(func.trim(SearchText.body), " "))
        every = " & ".join(f"'{word}'" + (":*" if len(term) == 1 else "") for term in wanted for word in term if word)
        asked_for = literal(every).op("::")(text("tsquery"))
        query = query.join(SearchText, SearchText.adapter_id == Adapter.id).where(vector.op("@@")(asked_for))
        # The index knows no positions; of the few rows it finds, a phrase must also stand in the text.
        phrases = [_like(term) for term in wanted if len(term) > 1]
        return query.where(*phrases).order_by(func.ts_rank(vector, asked_for).desc())
    if has_index(session):
        match = " AND ".join(f'"{" ".join(term).strip()}"' + ("*" if len(term) == 1 else "") for term in wanted)
        query = query.join(_INDEX, _INDEX.c.rowid == Adapter.id)
        return query.where(text("search_index MATCH :match").bindparams(match=match)).order_by(_INDEX.c.rank)
    return query.join(SearchText, SearchText.adapter_id == Adapter.id).where(and_(*map(_like, wanted)))


def has_index(session: Session) -> bool:
    """Whether SQLite has the FTS5 index, and can read it."""
    there = "SELECT 1 FROM sqlite_master WHERE name = 'search_index'"
    able = "SELECT 1 FROM pragma_module_list WHERE name = 'fts5'"
    return all(session.execute(text(question)).first() is not None for question in (there, able))


def index(session: Session, adapter_id: int) -> None:
    """Make the newest live version of an adapter, as it now is, what is found of it."""
    session.flush()
    session.execute(delete(SearchText).where(SearchText.adapter_id == adapter_id))
    row = session.scalar(select(Version).where(Version.adapter_id == adapter_id, Version.latest))
    if row is None:
        return
    tags = session.scalars(select(Tag.tag).where(Tag.version_id == row.id).order_by(Tag.tag))
    places = session.scalars(select(LocationRow.relpath).where(LocationRow.version_id == row.id))
    parts = [row.adapter.name, *tags, *in_force(row, "trigger_words"), row.notes, row.kind, row.base or "", row.format]
    parts += [in_force(row, "licence") or "", *(str(value) for value in row.source.values()), *places]
    body = f" {' '.join(word for part in parts for word in words(part))}"[:MAX_BODY].rstrip() + " "
    session.execute(insert(SearchText).values(adapter_id=adapter_id, body=body))


def _like(term: tuple[str, ...]) -> ColumnElement[bool]:
    # Words hold no %, _ or quote: they are letters and digits only.
    pattern = f"% {' '.join(term).strip()}" + ("%" if len(term) == 1 else " %")
    return SearchText.body.like(pattern)
