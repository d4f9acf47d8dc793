from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from registry import (
    ConflictError,
    DamagedError,
    Facts,
    Location,
    LockedError,
    NewerSchemaError,
    Parent,
    Recipe,
    Registry,
    Remote,
    Sketch,
    Validation,
    schema,
)
from registry.models import Base

Make = Callable[..., Facts]
SIDES = ("local_sha256", "remote_sha256")

# Rebuilds the two tables that others refer to with ON DELETE CASCADE, which is where SQLite loses children.
NEXT = """
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    for table in ("adapter", "version", "search_text"):
        with op.batch_alter_table(table, recreate="always" if op.get_context().dialect.name == "sqlite" else "auto") as t:
            t.add_column(sa.Column("extra", sa.Integer()))
{extra}
"""


@pytest.fixture
def next_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Pretend that this code is one revision further."""

    def install(extra: str = "") -> None:
        folder = tmp_path / "migrations"
        shutil.copytree(schema.migrations_folder(), folder, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "versions" / "0002_next.py").write_text(NEXT.replace("{extra}", extra))
        monkeypatch.setattr(schema, "REVISIONS", ("0001", "0002"))
        monkeypatch.setattr(schema, "migrations_folder", lambda: folder)

    return install


@pytest.fixture
def postgres_database(own_postgres: str) -> str:
    """These tests change the tables."""
    return own_postgres


def populate(registry: Registry, facts: Make) -> dict[str, int]:
    """At least one row in every table; returns how many are in each."""
    place = Location(root="/r", relpath="a", size=1, mtime_ns=1, inode=1, device=1)
    parent = registry.add_version("x", facts("a"), tags=["t"], location=place)
    recipe = Recipe(method="linear", expression="x", tool="t")
    registry.add_version("y", facts("b"), parents=[Parent(sha256=parent.file_sha256, reference="x")], recipe=recipe)
    registry.alias("x", "prod")
    registry.record_validations("x", [Validation(check="hash", severity="ok")])
    registry.put_remote("x", Remote(repo="u/r", branch="main", path="w", commit="c", **dict.fromkeys(SIDES, "0" * 64)))
    registry.put_sketch("x", Sketch(kind="k", base="sd15", norm=1.0, data=b"s"))
    return count(registry)


def count(registry: Registry) -> dict[str, int]:
    with registry._database.reading() as session:
        return {
            name: session.execute(sa.text(f"SELECT count(*) FROM {name}")).scalar_one() for name in Base.metadata.tables
        }


def execute(place: Any, statement: str) -> None:
    with place.open() as registry, registry._database.writing() as session:
        session.execute(sa.text(statement))


def test_the_tables_are_those_of_the_models(registry: Registry) -> None:
    def ours(thing: Any, name: str | None, kind: str, reflected: bool, compare_to: Any) -> bool:
        index_of_words = kind == "index" and name == "ix_search_text_words"
        return not index_of_words and not (kind == "table" and str(name).startswith(("search_index", "lorahub_")))

    with registry._database.reading() as session:
        options = {"include_object": ours, "compare_type": True}
        context = MigrationContext.configure(session.connection(), opts=options)
        assert compare_metadata(context, Base.metadata) == []


def test_the_newest_migration_is_the_revision_of_the_code() -> None:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(schema.migrations_folder()))
    script = ScriptDirectory.from_config(config)
    assert tuple(revision.revision for revision in script.walk_revisions())[::-1] == schema.REVISIONS


def test_every_table_is_populated(registry: Registry, facts: Make) -> None:
    assert min(populate(registry, facts).values()) > 0


def test_an_upgrade_keeps_every_child_row(place: Any, facts: Make, next_schema: Callable[..., None]) -> None:
    with place.open() as registry:
        before = populate(registry, facts)
    next_schema()
    with place.open() as registry:
        assert count(registry) == before
        assert registry.info().schema == "0002"
        assert registry.parents("y")[0].reference == "x:1"
        assert registry.get("x@prod").tags == ("t",)
        assert registry.check() == ()
        if place.database_url is None:
            assert registry.upgraded_from is not None
            with closing(sqlite3.connect(registry.upgraded_from)) as backup:
                assert backup.execute("SELECT version_num FROM lorahub_alembic_version").fetchall() == [("0001",)]
                assert backup.execute("SELECT count(*) FROM tag").fetchone() == (before["tag"],)
    with place.open() as registry:
        assert registry.upgraded_from is None


def test_an_upgrade_that_fails_changes_nothing(place: Any, facts: Make, next_schema: Callable[..., None]) -> None:
    with place.open() as registry:
        before = populate(registry, facts)
    with pytest.MonkeyPatch.context():
        next_schema('    raise RuntimeError("power cut")')
        with pytest.raises(RuntimeError, match="power cut"):
            place.open()
    schema.REVISIONS = ("0001",)
    with place.open() as registry:
        assert count(registry) == before
        assert registry.info().schema == "0001"


UPGRADE = """
import sys
import time
from pathlib import Path
from registry import Registry, schema
schema.REVISIONS = ("0001", "0002")
schema.migrations_folder = lambda: Path(sys.argv[2])
print("started", flush=True)
Registry.open(Path(sys.argv[1])).close()
"""


def test_kill_during_an_upgrade(
    sqlite_place: Any, facts: Make, next_schema: Callable[..., None], tmp_path: Path
) -> None:
    with sqlite_place.open() as registry:
        before = populate(registry, facts)
    next_schema()
    command = [sys.executable, "-c", UPGRADE, "", str(schema.migrations_folder())]
    unfinished = 0
    for step in range(10):
        home = tmp_path / f"home{step}"
        shutil.copytree(sqlite_place.home, home)
        command[3] = str(home)
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.06 * step)
            process.kill()
        with closing(sqlite3.connect(home / "registry.db")) as connection:
            unfinished += connection.execute("SELECT version_num FROM lorahub_alembic_version").fetchall() == [
                ("0001",)
            ]
        with Registry.open(home) as registry:
            assert count(registry) == before
            assert registry.check() == ()
    assert unfinished > 0


def test_an_upgrade_that_would_orphan_rows_is_refused(
    sqlite_place: Any, facts: Make, next_schema: Callable[..., None]
) -> None:
    with sqlite_place.open() as registry:
        populate(registry, facts)
    next_schema('    op.execute("DELETE FROM adapter")')
    with pytest.raises(DamagedError, match="not upgraded"):
        sqlite_place.open()
    with closing(sqlite3.connect(sqlite_place.home / "registry.db")) as connection:
        assert connection.execute("SELECT count(*) FROM adapter").fetchone() == (2,)
        assert connection.execute("SELECT version_num FROM lorahub_alembic_version").fetchall() == [("0001",)]


def test_a_newer_schema_is_refused_with_the_command(place: Any) -> None:
    execute(place, "UPDATE lorahub_alembic_version SET version_num = '9999'")
    with pytest.raises(NewerSchemaError, match=r"9999.*pip install --upgrade lorahub-toolkit"):
        place.open()


def test_a_foreign_alembic_version_is_left_alone(empty_postgres: str, tmp_path: Path, facts: Make) -> None:
    engine = sa.create_engine(empty_postgres)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE alembic_version (version_num text)"))
        connection.execute(sa.text("INSERT INTO alembic_version VALUES ('mlflow')"))
    with Registry.open(tmp_path, database_url=empty_postgres) as registry:
        registry.add_version("x", facts("a"))
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalars().all() == ["mlflow"]
    engine.dispose()


@pytest.mark.parametrize(
    "statement", ["DROP TABLE lorahub_alembic_version", "DELETE FROM lorahub_alembic_version",
                  "INSERT INTO lorahub_alembic_version VALUES ('0000')"]
)  # fmt: skip
def test_tables_without_one_revision_are_damaged(place: Any, statement: str) -> None:
    execute(place, statement)
    with pytest.raises(DamagedError, match="lorahub_alembic_version"):
        place.open()


def test_an_upgrade_waits_for_the_lock_then_says_so(sqlite_place: Any, next_schema: Callable[..., None]) -> None:
    from filelock import FileLock

    sqlite_place.open().close()
    next_schema()
    with FileLock(sqlite_place.home / "registry.db.lock"), pytest.raises(LockedError, match="another process"):
        sqlite_place.open(timeout=0.1)
    sqlite_place.open().close()


def test_a_backup_is_a_whole_registry(sqlite_place: Any, facts: Make, tmp_path: Path) -> None:
    with sqlite_place.open() as registry:
        before = populate(registry, facts)
        saved = registry.backup()
        registry.remove("x:1") if not registry.get("x").aliases else registry.unalias("x", "prod")
    (tmp_path / "other").mkdir()
    shutil.copy(saved, tmp_path / "other" / "registry.db")
    with Registry.open(tmp_path / "other") as copy:
        assert count(copy) == before
        assert copy.get("x@prod").number == 1
    assert [path.name for path in (sqlite_place.home / "backups").iterdir()] == [saved.name]


PROBE = """
import sys
import time
import registry
assert not {"sqlalchemy", "alembic", "torch", "lorahub", "fsspec", "platformdirs"} & set(sys.modules), "import registry"
from pathlib import Path
for turn in (1, 2):
    with registry.Registry.open(Path(sys.argv[1])) as opened:
        opened.list(), opened.info()
    print("alembic" in sys.modules)
    if turn == 1:
        for name in [name for name in sys.modules if name.split(".")[0] in ("alembic", "mako")]:
            del sys.modules[name]
assert not {"torch", "lorahub", "fsspec"} & set(sys.modules), "open"
"""


def test_alembic_is_imported_only_when_the_schema_is_behind(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert (done.stderr, done.stdout.split()) == ("", ["True", "False"])


def test_conflicting_rows_are_refused_by_the_database(registry: Registry, facts: Make) -> None:
    registry.add_version("x", facts("a"))
    with pytest.raises(ConflictError), registry._database.writing() as session:
        session.execute(sa.text("UPDATE version SET adapter_id = 999"))
