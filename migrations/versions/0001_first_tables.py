"""The first released tables, and the full-text index of search_text."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_names()
    create_versions()
    create_lineage()
    create_files()
    create_remotes()
    create_sketches()
    create_search()


def create_names() -> None:
    """Adapters, and where their aliases pointed over time."""
    op.create_table(
        "adapter",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("name_key", sa.String(length=800), nullable=False),
        sa.Column("last_number", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_adapter"),
        sa.UniqueConstraint("name", name="uq_adapter_name"),
        sa.UniqueConstraint("name_key", name="uq_adapter_name_key"),
    )
    op.create_table(
        "alias_history",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("alias", sa.String(length=200), nullable=False),
        sa.Column("previous", sa.Integer(), nullable=True),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.Column("by", sa.Text(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapter.id"], name="fk_alias_history_adapter_id_adapter", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_alias_history"),
    )
    op.create_index("ix_alias_history_adapter_id", "alias_history", ["adapter_id"])


def create_versions() -> None:
    """Versions, with the aliases and tags on them."""
    op.create_table(
        "version",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("latest", sa.Boolean(), nullable=False),
        sa.Column("stored", sa.Boolean(), nullable=False),
        sa.Column("hashed", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("file_sha256", sa.String(length=64), nullable=False),
        sa.Column("data_sha256", sa.String(length=64), nullable=True),
        sa.Column("fingerprint", sa.String(length=200), nullable=True),
        sa.Column("autov3", sa.String(length=64), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("kind_found", sa.Text(), nullable=False),
        sa.Column("base", sa.Text(), nullable=True),
        sa.Column("base_detected", sa.Text(), nullable=True),
        sa.Column("base_declared", sa.Text(), nullable=True),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("parameters", sa.BigInteger(), nullable=True),
        sa.Column("dtype", sa.Text(), nullable=True),
        sa.Column("scale", sa.Float(), nullable=True),
        sa.Column("licence", sa.Text(), nullable=True),
        sa.Column("ranks", sa.Text(), nullable=False),
        sa.Column("layers", sa.Text(), nullable=False),
        sa.Column("trigger_words", sa.Text(), nullable=False),
        sa.Column("previews", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("run", sa.Text(), nullable=True),
        sa.Column("overrides", sa.Text(), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.Column("notes", sa.Text(), nullable=False),
        sa.Column("norms", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapter.id"], name="fk_version_adapter_id_adapter", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_version"),
        sa.UniqueConstraint("adapter_id", "file_sha256", name="uq_version_adapter_id_file_sha256"),
        sa.UniqueConstraint("adapter_id", "number", name="uq_version_adapter_id_number"),
    )
    op.create_index("ix_version_base", "version", ["base"])
    op.create_index("ix_version_created_at", "version", ["created_at"])
    op.create_index(
        "ix_version_deleted_at",
        "version",
        ["deleted_at"],
        sqlite_where=sa.text("deleted_at IS NOT NULL"),
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
    )
    op.create_index("ix_version_data_sha256", "version", ["data_sha256"])
    op.create_index("ix_version_file_sha256", "version", ["file_sha256"])
    op.create_index("ix_version_fingerprint", "version", ["fingerprint"])
    op.create_index("ix_version_kind", "version", ["kind"])
    op.create_index("ix_version_parameters", "version", ["parameters"])
    op.create_index("ix_version_rank", "version", ["rank"])
    op.create_index("ix_version_seen_at", "version", ["seen_at"])
    op.create_index("ix_version_size", "version", ["size"])
    op.create_index(
        "uq_version_latest",
        "version",
        ["adapter_id"],
        unique=True,
        sqlite_where=sa.text("latest = 1"),
        postgresql_where=sa.text("latest"),
    )
    op.create_table(
        "alias",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("alias", sa.String(length=200), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.id"], name="fk_alias_adapter_id_adapter", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_alias_version_id_version", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("adapter_id", "alias", name="pk_alias"),
    )
    op.create_index("ix_alias_version_id", "alias", ["version_id"])
    op.create_table(
        "tag",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("tag", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_tag_version_id_version", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("version_id", "tag", name="pk_tag"),
    )
    op.create_index("ix_tag_tag", "tag", ["tag"])


def create_lineage() -> None:
    """Terms and recipes of versions that were made from others."""
    op.create_table(
        "parent",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("parent_version_id", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["parent_version_id"], ["version.id"], name="fk_parent_parent_version_id_version", ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["version.id"], name="fk_parent_version_id_version", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("version_id", "position", name="pk_parent"),
    )
    op.create_index("ix_parent_parent_version_id", "parent", ["parent_version_id"])
    op.create_index("ix_parent_sha256", "parent", ["sha256"])
    op.create_table(
        "recipe",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("expression", sa.Text(), nullable=False),
        sa.Column("tool", sa.Text(), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("document", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"], ["version.id"], name="fk_recipe_version_id_version", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("version_id", name="pk_recipe"),
    )


def create_files() -> None:
    """Where files lie, and what checks found in them."""
    op.create_table(
        "location",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.Column("relpath", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("inode", sa.BigInteger(), nullable=False),
        sa.Column("device", sa.BigInteger(), nullable=False),
        sa.Column("missing_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"], ["version.id"], name="fk_location_version_id_version", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_location"),
        sa.UniqueConstraint("root", "relpath", name="uq_location_root_relpath"),
    )
    op.create_index("ix_location_version_id", "location", ["version_id"])
    op.create_table(
        "validation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("check", sa.Text(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("layer", sa.Text(), nullable=True),
        sa.Column("tool", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"], ["version.id"], name="fk_validation_version_id_version", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_validation"),
    )
    op.create_index("ix_validation_version_id", "validation", ["version_id"])


def create_remotes() -> None:
    """Where adapters are on the Hub."""
    op.create_table(
        "remote",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("repo", sa.String(length=200), nullable=False),
        sa.Column("branch", sa.String(length=250), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("commit", sa.String(length=64), nullable=False),
        sa.Column("local_sha256", sa.String(length=64), nullable=False),
        sa.Column("remote_sha256", sa.String(length=64), nullable=False),
        sa.Column("files", sa.Text(), nullable=False),
        sa.Column("said", sa.Text(), nullable=True),
        sa.Column("synced_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapter.id"], name="fk_remote_adapter_id_adapter", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("adapter_id", name="pk_remote"),
    )
    op.create_index("ix_remote_repo", "remote", ["repo"])


def create_sketches() -> None:
    """Small stand-ins for weights, by which similar ones are found."""
    op.create_table(
        "sketch",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("base", sa.String(length=200), nullable=False),
        sa.Column("norm", sa.Float(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"], ["version.id"], name="fk_sketch_version_id_version", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("version_id", name="pk_sketch"),
    )
    op.create_index("ix_sketch_kind_base", "sketch", ["kind", "base"])


def create_search() -> None:
    """The words of each adapter, and the database's own full-text index on them."""
    op.create_table(
        "search_text",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapter.id"], name="fk_search_text_adapter_id_adapter", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("adapter_id", name="pk_search_text"),
    )
    if op.get_context().dialect.name == "postgresql":
        op.execute(
            "CREATE INDEX ix_search_text_words ON search_text"
            " USING gin (array_to_tsvector(string_to_array(trim(body), ' ')))"
        )
        return
    fts5 = op.get_bind().exec_driver_sql("SELECT 1 FROM pragma_module_list WHERE name = 'fts5'").first()
    if fts5 is None:
        return  # an SQLite built without it: registry.search then reads search_text itself
    op.execute(
        "CREATE VIRTUAL TABLE search_index USING fts5(body, content='search_text', content_rowid='adapter_id',"
        " tokenize='unicode61 remove_diacritics 0', prefix='2 3')"
    )
    # An external-content table is told the old words when a row goes; cascades fire these triggers too.
    forget = "INSERT INTO search_index (search_index, rowid, body) VALUES ('delete', old.adapter_id, old.body);"
    learn = "INSERT INTO search_index (rowid, body) VALUES (new.adapter_id, new.body);"
    for event, body in (("INSERT", learn), ("DELETE", forget), ("UPDATE", forget + learn)):
        op.execute(f"CREATE TRIGGER search_text_{event.lower()} AFTER {event} ON search_text BEGIN {body} END")
