"""Sketches of weights: kept beside versions, read by the thousand. What is in them is the business of their maker."""

from __future__ import annotations

import math

from sqlalchemy import or_, select

from registry import listing
from registry.connected import Connected
from registry.errors import InvalidError
from registry.models import Adapter, SketchRow, Version
from registry.records import Sketch, VersionRecord
from registry.resolve import version_row


class Sketches(Connected):
    """The verbs about sketches."""

    def put_sketch(self, reference: str, sketch: Sketch) -> None:
        """Keep the sketch of a version instead of the one before; raises InvalidError for a norm that is no number."""
        if not math.isfinite(sketch.norm):
            raise InvalidError(f"expected the norm of a sketch to be a finite number, got {sketch.norm}")
        with self._writing() as session:
            id_ = version_row(session, reference).id
            session.merge(
                SketchRow(version_id=id_, kind=sketch.kind, base=sketch.base, norm=sketch.norm, data=sketch.data)
            )

    def sketch(self, reference: str, kind: str) -> Sketch | None:
        """The sketch of a version, None if it has none of this kind."""
        with self._reading() as session:
            row = session.get(SketchRow, version_row(session, reference).id)
            if row is None or row.kind != kind:
                return None
            return Sketch(kind=row.kind, base=row.base, norm=row.norm, data=row.data)

    def sketches(self, kind: str, base: str) -> tuple[list[str], list[float], list[bytes]]:
        """References, norms and data of all live versions with a sketch of this kind and base, in three columns."""
        query = (
            select(Adapter.name, Version.number, SketchRow.norm, SketchRow.data)
            .join(Version, Version.id == SketchRow.version_id)
            .join(Adapter, Adapter.id == Version.adapter_id)
            .where(SketchRow.kind == kind, SketchRow.base == base, Version.deleted_at.is_(None))
            .order_by(Version.id)
        )
        with self._reading() as session:
            rows = session.execute(query).all()
        return [f"{row[0]}:{row[1]}" for row in rows], [row[2] for row in rows], [row[3] for row in rows]

    def without_sketch(self, kind: str) -> tuple[VersionRecord, ...]:
        """Live versions that have no sketch of this kind, or one of another base than they now have."""
        stale = or_(SketchRow.version_id.is_(None), SketchRow.kind != kind, SketchRow.base != Version.base)
        query = select(Version).outerjoin(SketchRow, SketchRow.version_id == Version.id)
        with self._reading() as session:
            return listing.versions(session, query.where(Version.deleted_at.is_(None), stale))
