"""The tables. Rows of these classes never leave the package; `registry.rows` turns them into frozen records.

A version is in the trash while `deleted_at` is set. Exactly one live version of an adapter has `latest` set. Version
numbers are never given twice, which is what `adapter.last_number` is for. `version.kind` and `version.base` are the
values in force, for filtering; what was found and what was said are kept beside them. A `parent` row always carries
the hash, so that lineage outlives the parent's own row.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    Boolean,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from registry.columns import FilePath, JsonText, Norms, SafeText, Unsigned64, UtcDateTime

Json = Mapping[str, Any]
Strings = list[str]

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Common metadata and the column type of each Python type."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: SafeText,
        int: Integer,
        bool: Boolean,
        float: Float,
        datetime: UtcDateTime,
        Json: JsonText,
        Strings: JsonText,
    }


class Adapter(Base):
    """A name, under which there are versions."""

    __tablename__ = "adapter"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    name_key: Mapped[str] = mapped_column(String(800), unique=True)
    last_number: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]


class Version(Base):
    """One file under a name. The bulky columns come last, so that a scan of the table need not read them."""

    __tablename__ = "version"
    __table_args__ = (
        UniqueConstraint("adapter_id", "number"),
        UniqueConstraint("adapter_id", "file_sha256"),
        Index(
            "uq_version_latest",
            "adapter_id",
            unique=True,
            sqlite_where=text("latest = 1"),
            postgresql_where=text("latest"),
        ),
        # Partial, lest the planner take it for "not in the trash", which nearly all rows are.
        Index(
            "ix_version_deleted_at",
            "deleted_at",
            sqlite_where=text("deleted_at IS NOT NULL"),
            postgresql_where=text("deleted_at IS NOT NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapter.id", ondelete="CASCADE"))
    number: Mapped[int]
    latest: Mapped[bool]
    stored: Mapped[bool]
    hashed: Mapped[bool]
    created_at: Mapped[datetime] = mapped_column(index=True)
    seen_at: Mapped[datetime] = mapped_column(index=True)
    deleted_at: Mapped[datetime | None]
    file_sha256: Mapped[str] = mapped_column(String(64), index=True)
    data_sha256: Mapped[str | None] = mapped_column(String(64), index=True)
    fingerprint: Mapped[str | None] = mapped_column(String(200), index=True)
    autov3: Mapped[str | None] = mapped_column(String(64))
    size: Mapped[int] = mapped_column(BigInteger, index=True)
    format: Mapped[str]
    kind: Mapped[str] = mapped_column(index=True)
    kind_found: Mapped[str]
    base: Mapped[str | None] = mapped_column(index=True)
    base_detected: Mapped[str | None]
    base_declared: Mapped[str | None]
    rank: Mapped[int] = mapped_column(index=True)
    parameters: Mapped[int | None] = mapped_column(BigInteger, index=True)
    dtype: Mapped[str | None]
    scale: Mapped[float | None]
    licence: Mapped[str | None]
    ranks: Mapped[Json]
    layers: Mapped[Json]
    trigger_words: Mapped[Strings]
    previews: Mapped[Strings]
    source: Mapped[Json]
    run: Mapped[Json | None] = mapped_column()
    overrides: Mapped[Json]
    evidence: Mapped[Strings]
    notes: Mapped[str]
    norms: Mapped[Mapping[str, float] | None] = mapped_column(Norms, deferred=True)

    adapter: Mapped[Adapter] = relationship(lazy="joined", innerjoin=True)
    tags: Mapped[list[Tag]] = relationship(lazy="selectin", viewonly=True, order_by="Tag.tag")
    aliases: Mapped[list[Alias]] = relationship(lazy="selectin", viewonly=True, order_by="Alias.alias")


class Tag(Base):
    """A word a person put on a version."""

    __tablename__ = "tag"

    version_id: Mapped[int] = mapped_column(ForeignKey("version.id", ondelete="CASCADE"), primary_key=True)
    tag: Mapped[str] = mapped_column(String(64), primary_key=True, index=True)


class Alias(Base):
    """A word that points at one version of an adapter."""

    __tablename__ = "alias"

    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapter.id", ondelete="CASCADE"), primary_key=True)
    alias: Mapped[str] = mapped_column(String(200), primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("version.id", ondelete="CASCADE"), index=True)


class AliasHistory(Base):
    """Who pointed an alias where, and when; numbers, not rows, so that it outlives the versions."""

    __tablename__ = "alias_history"

    id: Mapped[int] = mapped_column(primary_key=True)
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapter.id", ondelete="CASCADE"), index=True)
    alias: Mapped[str] = mapped_column(String(200))
    previous: Mapped[int | None]
    number: Mapped[int | None]
    by: Mapped[str | None]
    at: Mapped[datetime]


class ParentRow(Base):
    """One term of the sum a version was made from."""

    __tablename__ = "parent"

    version_id: Mapped[int] = mapped_column(ForeignKey("version.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    weight: Mapped[float]
    parent_version_id: Mapped[int | None] = mapped_column(ForeignKey("version.id", ondelete="SET NULL"), index=True)


class RecipeRow(Base):
    """How a version was made."""

    __tablename__ = "recipe"

    version_id: Mapped[int] = mapped_column(ForeignKey("version.id", ondelete="CASCADE"), primary_key=True)
    method: Mapped[str]
    expression: Mapped[str]
    tool: Mapped[str]
    settings: Mapped[Json]
    seed: Mapped[int | None] = mapped_column(Unsigned64)
    document: Mapped[Json]


class LocationRow(Base):
    """Where a file lies in a folder the user owns; kept, marked missing, when it is not there."""

    __tablename__ = "location"
    __table_args__ = (UniqueConstraint("root", "relpath"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("version.id", ondelete="CASCADE"), index=True)
    root: Mapped[str] = mapped_column(FilePath)
    relpath: Mapped[str] = mapped_column(FilePath)
    size: Mapped[int] = mapped_column(BigInteger)
    mtime_ns: Mapped[int] = mapped_column(BigInteger)
    inode: Mapped[int] = mapped_column(Unsigned64)
    device: Mapped[int] = mapped_column(Unsigned64)
    missing_since: Mapped[datetime | None]
    seen_at: Mapped[datetime]


class ValidationRow(Base):
    """One finding of a check."""

    __tablename__ = "validation"

    id: Mapped[int] = mapped_column(primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("version.id", ondelete="CASCADE"), index=True)
    check: Mapped[str]
    severity: Mapped[str]
    message: Mapped[str]
    layer: Mapped[str | None]
    tool: Mapped[str]
    at: Mapped[datetime]


class SketchRow(Base):
    """A few numbers that stand for the weights of a version (`lorahub.workspace.sketch`); made again from its file."""

    __tablename__ = "sketch"
    __table_args__ = (Index("ix_sketch_kind_base", "kind", "base"),)

    version_id: Mapped[int] = mapped_column(ForeignKey("version.id", ondelete="CASCADE"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(40))
    base: Mapped[str] = mapped_column(String(200))
    norm: Mapped[float]
    data: Mapped[bytes] = mapped_column(LargeBinary)


class RemoteRow(Base):
    """Where an adapter is on the Hub, and what both sides held when they were last alike (`registry.remotes`)."""

    __tablename__ = "remote"

    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapter.id", ondelete="CASCADE"), primary_key=True)
    repo: Mapped[str] = mapped_column(String(200), index=True)
    branch: Mapped[str] = mapped_column(String(250))
    path: Mapped[str]
    commit: Mapped[str] = mapped_column(String(64))
    local_sha256: Mapped[str] = mapped_column(String(64))
    remote_sha256: Mapped[str] = mapped_column(String(64))
    files: Mapped[Json]
    said: Mapped[Json | None] = mapped_column()
    synced_at: Mapped[datetime]


class SearchText(Base):
    """The words of an adapter's newest live version (`registry.search`); the full-text index hangs on this table."""

    __tablename__ = "search_text"

    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapter.id", ondelete="CASCADE"), primary_key=True)
    body: Mapped[str]
