"""A second copy of the registry as lines of JSON, so that a lost or damaged SQLite database can be made again.

Every transaction that changes the database appends to `journal.jsonl` all rows of each adapter it touched, and then its
number. The rule: the number is also in the database (`PRAGMA user_version`), in the same transaction. Where the two
disagree (a crash between them, a restored backup, a lost journal), the database is right, and the journal is written anew.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table

from registry.errors import DamagedError, UnavailableError
from registry.home import JOURNAL
from registry.models import Base
from registry.rows import chunks

NAME = JOURNAL
FACTOR, SLACK = 3, 1 << 24
"""The journal is written anew when it is this many times as large as it was then, and `SLACK` bytes more."""
_DERIVED = {"search_text", "sketch"}
_END = re.compile(rb'\n\{"number": (\d+), "begun": (\d+)\}\n\Z')

Rows = dict[str, list[dict[str, Any]]]


def _tables() -> Iterator[tuple[Table, str, str]]:
    """Each table with two SQL expressions: of a row `?` for its adapter, and of adapters `@` for the condition on rows."""
    for table in Base.metadata.sorted_tables:
        if table.name in _DERIVED:
            continue
        if table.name == "adapter":
            yield table, "?.id", "id IN (@)"
        elif "adapter_id" in table.columns:
            yield table, "?.adapter_id", "adapter_id IN (@)"
        elif "version_id" in table.columns:
            owner = "(SELECT adapter_id FROM version WHERE id = ?.version_id)"
            yield table, owner, "version_id IN (SELECT id FROM version WHERE adapter_id IN (@))"
        else:
            raise AssertionError(f"the journal does not know whose rows those of {table.name} are")


def watch(connection: Connection) -> None:
    """Make a connection remember the adapters whose rows it changes, whatever statement changes them."""
    if connection.info.get("journal"):
        return
    connection.exec_driver_sql("CREATE TEMP TABLE IF NOT EXISTS touched (id INTEGER PRIMARY KEY)")
    for table, owner, _ in _tables():
        for verb, rows in (("INSERT", ("new",)), ("UPDATE", ("old", "new")), ("DELETE", ("old",))):
            # Not INSERT OR IGNORE: a trigger obeys the conflict rule of the statement that fires it.
            inserts = " ".join(
                f"INSERT INTO touched SELECT {id_} WHERE {id_} IS NOT NULL AND {id_} NOT IN (SELECT id FROM touched);"
                for id_ in (owner.replace("?", row) for row in rows)
            )
            connection.exec_driver_sql(
                f"CREATE TEMP TRIGGER IF NOT EXISTS watch_{table.name}_{verb} AFTER {verb} ON main.{table.name} BEGIN {inserts} END"
            )
    connection.info["journal"] = True


def write(connection: Connection, path: Path, schema: str) -> None:
    """Append what the transaction has changed, before it commits; raises UnavailableError when there is no room."""
    touched = [row[0] for row in connection.exec_driver_sql("SELECT id FROM touched")]
    if not touched:
        return
    connection.exec_driver_sql("DELETE FROM touched")
    number = int(connection.exec_driver_sql("PRAGMA user_version").scalar() or 0)
    try:
        last, begun, size = _end(path)
        if last != number or size > begun * FACTOR + SLACK:
            _write_anew(connection, path, schema, number + 1, behind=last is not None and last != number)
        else:
            with path.open("ab") as file:
                file.write(_lines(connection, touched) + _trailer(number + 1, begun))
    except OSError as error:
        raise UnavailableError(f"cannot write {path} ({error.strerror}): check the disk") from error
    connection.exec_driver_sql(f"PRAGMA user_version = {number + 1}")


def read(path: Path) -> tuple[str, int, dict[int, Rows]]:
    """(schema, number, rows of each adapter) as of the last whole transaction in a journal.

    Raises:
        DamagedError: there is no journal, or no whole transaction in it.
    """
    schema, number = "", -1
    adapters: dict[int, Rows] = {}
    pending: dict[int, Rows] = {}
    try:
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break  # the last write was cut off
                try:
                    entry = json.loads(line)
                except ValueError:
                    break
                if not isinstance(entry, dict):
                    break
                if "number" in entry:
                    adapters.update(pending)
                    number, pending = entry["number"], {}
                elif "schema" in entry:
                    schema = entry["schema"]
                else:
                    pending[entry["adapter_id"]] = entry["rows"]
    except OSError as error:
        raise DamagedError(f"cannot read {path} ({error.strerror})") from error
    if number < 0:
        raise DamagedError(f"{path} holds no whole transaction")
    return schema, number, {id_: rows for id_, rows in adapters.items() if rows}


def restore(connection: Connection, number: int, adapters: dict[int, Rows]) -> None:
    """Fill empty tables with the rows of a journal. Foreign keys must be off: a parent may come after its child."""
    for rows in adapters.values():
        for table, records in rows.items():
            for record in records:
                marks = ", ".join("?" * len(record))
                connection.exec_driver_sql(
                    f"INSERT INTO {_quoted(table)} ({', '.join(map(_quoted, record))}) VALUES ({marks})",
                    tuple(_decoded(value) for value in record.values()),
                )
    connection.exec_driver_sql(f"PRAGMA user_version = {number}")


def _end(path: Path) -> tuple[int | None, int, int]:
    """(number of the last transaction, size when the journal was begun, size); None when the end is not whole."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 100))
            found = _END.search(file.read())
    except FileNotFoundError:
        return None, 0, 0
    return (int(found[1]), int(found[2]), size) if found else (None, 0, size)


def _trailer(number: int, begun: int) -> bytes:
    return f'{{"number": {number}, "begun": {begun}}}\n'.encode()


def _write_anew(connection: Connection, path: Path, schema: str, number: int, *, behind: bool) -> None:
    """The whole database; a journal that knows of more than the database (a backup was restored) is kept aside."""
    ids = [row[0] for row in connection.exec_driver_sql("SELECT id FROM adapter ORDER BY id")]
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("wb") as file:
        file.write(json.dumps({"schema": schema}).encode() + b"\n")
        for chunk in chunks(ids, 500):
            file.write(_lines(connection, chunk))
        file.write(_trailer(number, file.tell()))
    if behind:
        with suppress(FileNotFoundError):
            path.replace(path.with_name(f"{path.name}.before"))
    fresh.replace(path)


def _lines(connection: Connection, ids: Iterable[int]) -> bytes:
    """One line for each adapter, with all its rows; none for one that is gone."""
    found: dict[int, Rows] = {id_: {} for id_ in ids}
    for chunk in chunks(found, 500):
        wanted = ", ".join(map(str, chunk))
        for table, owner, condition in _tables():
            owner, condition = owner.replace("?", table.name), condition.replace("@", wanted)
            result = connection.exec_driver_sql(
                f"SELECT {owner} AS _owner, {table.name}.* FROM {table.name} WHERE {condition}"
            )
            columns = list(result.keys())[1:]
            for row in result:
                record = dict(zip(columns, map(_encoded, row[1:]), strict=True))
                found[row[0]].setdefault(table.name, []).append(record)
    return b"".join(
        json.dumps({"adapter_id": id_, "rows": rows}, separators=(",", ":")).encode() + b"\n"
        for id_, rows in found.items()
    )


def _encoded(value: Any) -> Any:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _decoded(value: Any) -> Any:
    return base64.b64decode(value["base64"]) if isinstance(value, dict) else value


def _quoted(name: str) -> str:
    if not name.isidentifier():
        raise DamagedError(f"a journal names a column {name[:80]!a}")
    return f'"{name}"'
