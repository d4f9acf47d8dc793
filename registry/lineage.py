"""How one adapter was made from others. Files are the nodes, by sha256: lineage outlives names, rows and purges."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from registry.errors import ConflictError
from registry.models import ParentRow, RecipeRow, Version
from registry.records import Edge, Lineage, Parent, Recipe
from registry.resolve import version_row
from registry.rows import chunks, recipe_record, version_record


def record(session: Session, row: Version, parents: Iterable[Parent], recipe: Recipe | None) -> None:
    """Replace the lineage of a version by what is given; nothing given leaves it as it was.

    Raises:
        ConflictError: a parent's reference names another file than its hash.
        NotFoundError: a parent's reference names nothing.
    """
    parents = tuple(parents)
    if parents:
        session.execute(delete(ParentRow).where(ParentRow.version_id == row.id))
    for position, parent in enumerate(parents):
        known = None if parent.reference is None else version_row(session, parent.reference)
        if known is not None and known.file_sha256 != parent.sha256:
            raise ConflictError(
                f"parent {parent.reference} is sha256:{known.file_sha256[:12]}, not sha256:{parent.sha256[:12]}: "
                "it changed meanwhile; combine again"
            )
        session.add(
            ParentRow(
                version_id=row.id,
                position=position,
                sha256=parent.sha256,
                weight=parent.weight,
                parent_version_id=None if known is None else known.id,
            )
        )
    if recipe is not None:
        session.merge(
            RecipeRow(
                version_id=row.id,
                method=recipe.method,
                expression=recipe.expression,
                tool=recipe.tool,
                settings=dict(recipe.settings),
                seed=recipe.seed,
                document=dict(recipe.document),
            )
        )
    session.flush()


def parents(session: Session, reference: str) -> tuple[Parent, ...]:
    """The terms of a version in order; a bare hash gets a reference once some version has that file."""
    row = version_row(session, reference)
    terms = session.scalars(select(ParentRow).where(ParentRow.version_id == row.id).order_by(ParentRow.position)).all()
    nodes = _versions(session, {term.sha256 for term in terms})
    found = []
    for term in terms:
        known = session.get(Version, term.parent_version_id) if term.parent_version_id is not None else None
        known = known or nodes.get(term.sha256)
        name = None if known is None else f"{known.adapter.name}:{known.number}"
        found.append(Parent(sha256=term.sha256, weight=term.weight, reference=name))
    return tuple(found)


def recipe(session: Session, reference: str) -> Recipe | None:
    """How a version was made; None if that is not recorded."""
    row = session.get(RecipeRow, version_row(session, reference).id)
    return None if row is None else recipe_record(row)


def family(session: Session, reference: str, depth: int | None) -> Lineage:
    """All ancestors and descendants of a file, at most `depth` steps away. A cycle in the rows does no harm."""
    root = version_row(session, reference)
    edges: set[Edge] = set()
    for upwards in (True, False):
        seen, frontier, steps = {root.file_sha256}, {root.file_sha256}, 0
        while frontier and (depth is None or steps < depth):
            found = _edges(session, frontier, upwards)
            edges |= found
            frontier = {edge.parent if upwards else edge.child for edge in found} - seen
            seen |= frontier
            steps += 1
    hashes = {root.file_sha256} | {edge.parent for edge in edges} | {edge.child for edge in edges}
    rows = _versions(session, hashes) | {root.file_sha256: root}
    nodes = {sha256: version_record(rows[sha256]) if sha256 in rows else None for sha256 in sorted(hashes)}
    ordered = sorted(edges, key=lambda edge: (edge.child, edge.position, edge.parent))
    return Lineage(root=root.file_sha256, nodes=nodes, edges=tuple(ordered))


def _edges(session: Session, hashes: set[str], upwards: bool) -> set[Edge]:
    query = select(Version.file_sha256, ParentRow.sha256, ParentRow.position, ParentRow.weight).join(
        ParentRow, ParentRow.version_id == Version.id
    )
    end = Version.file_sha256 if upwards else ParentRow.sha256
    return {
        Edge(child=child, parent=parent, position=position, weight=weight)
        for chunk in chunks(hashes)
        for child, parent, position, weight in session.execute(query.where(end.in_(chunk)))
    }


def _versions(session: Session, hashes: set[str]) -> dict[str, Version]:
    rows = [
        row
        for chunk in chunks(hashes)
        for row in session.scalars(select(Version).where(Version.file_sha256.in_(chunk)))
    ]
    # Of several names for one file: a live one before one in the trash, then the oldest.
    rows.sort(key=lambda row: (row.deleted_at is None, -row.id))
    return {row.file_sha256: row for row in rows}
