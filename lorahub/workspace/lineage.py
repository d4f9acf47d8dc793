"""Where an adapter came from and what was made of it: as a tree, as a graph for Graphviz, and as the command that makes it
again.

The rule: a file the registry never saw still has its place, by its hash, and by the name its children remember.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lorahub.errors import NotFoundError, UsageError
from lorahub.expression import quote, render
from lorahub.files.inspecting import inspect
from lorahub.references import find, reads_as_registry
from lorahub.workspace.core import Workspace
from lorahub.workspace.errors import translated
from registry import Lineage, VersionRecord

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Node:
    """One file of the family. `reference` is None for one that the registry does not know."""

    id: str
    label: str
    reference: str | None
    kind: str | None
    base: str | None


@dataclass(frozen=True)
class Link:
    """`child` was made from `parent` (ids of nodes) with this weight."""

    child: str
    parent: str
    weight: float


@dataclass(frozen=True)
class Family:
    """All ancestors and descendants of `root`."""

    root: str
    nodes: Mapping[str, Node]
    links: tuple[Link, ...]


def family(workspace: Workspace, reference: str, *, depth: int | None = None) -> Family:
    """The family of a version, or of a file: by its bytes when the registry knows them, else by what the file itself says.

    Raises what `lorahub.references.find` raises.
    """
    record = _known(workspace, reference)
    if record is None:
        return _told(reference, inspect(find(reference, workspace).path)[0].provenance or {}, depth)
    with translated():
        found = workspace.registry.lineage(record.reference, depth=depth)
        names = _remembered(workspace, found)
    nodes = {sha256: _node(sha256, known, names.get(sha256)) for sha256, known in found.nodes.items()}
    links = tuple(Link(edge.child, edge.parent, edge.weight) for edge in found.edges)
    return Family(found.root, nodes, links)


def tree(found: Family) -> list[str]:
    """Two trees below the root: what it was made from, and what was made from it; a node seen before is not unfolded again."""
    lines = [_title(found.nodes[found.root])]
    if _has(found, found.root, True):
        lines += ["  made from", *_branches(found, found.root, True, "  ", {found.root})]
    if _has(found, found.root, False):
        lines += ["  part of", *_branches(found, found.root, False, "  ", {found.root})]
    return (
        lines if len(lines) > 1 else [*lines, "  nothing is recorded of where it came from, or of what was made of it"]
    )


def dot(found: Family) -> str:
    """The family as a Graphviz graph, arrows from parents to children."""
    lines = ["digraph lineage {", "  rankdir=LR;", "  node [shape=box];"]
    for node in found.nodes.values():
        style = ", style=bold" if node.id == found.root else ("" if node.reference else ", style=dashed")
        lines.append(f"  {_quoted(node.id)} [label={_quoted(node.label)}{style}];")
    lines += [
        f"  {_quoted(link.parent)} -> {_quoted(link.child)} [label={_quoted(f'{link.weight:g}')}];"
        for link in found.links
    ]
    return "\n".join([*lines, "}"])


def command(workspace: Workspace, reference: str) -> str:
    """The shell command that makes a version again, its parents named as the registry names them today.

    Raises NotFoundError when no recipe is recorded, UsageError when no single command line says it.
    """
    from lorahub.workspace.replaying import recorded

    record, document = recorded(workspace, reference)
    name = record.name if record is not None else "NAME"
    recipe, rule = document["recipe"], list[str]()
    if recipe.get("step") == "truncate":
        rule, recipe = _rule(str(recipe["settings"]["rule"])), recipe["of"][0]
    terms, weights = [], []
    for share, part in recipe.get("sum") or [[1.0, recipe]]:
        patterns = []
        if isinstance(part, Mapping) and part.get("step") == "weighted":
            patterns, part = part["settings"]["weights"], part["of"][0]
        if not isinstance(part, Mapping) or "source" not in part:
            raise UsageError(f"no single command makes {reference}: run `lorahub rebuild {reference}`")
        operand = _operand(workspace, part)
        terms.append((float(share), quote(operand)))
        weights += [["--weight", operand, str(pattern), f"{weight!r}"] for pattern, weight in patterns]
    output = document.get("output") or {}
    words = ["lorahub", "combine", render(terms), "--name", name, *rule]
    words += [word for group in weights for word in group]
    words += ["--format", str(output.get("format", "kohya")), "--dtype", str(output.get("dtype", "fp16"))]
    words += [word for part in output.get("drop", ()) for word in ("--drop", str(part))]
    base = str(document.get("base") or "")
    words += ["--base", base] if base and not base.startswith("unlisted") else []
    return shlex.join(words)


def _known(workspace: Workspace, reference: str) -> VersionRecord | None:
    located = None
    try:
        located = find(reference, workspace)
    except NotFoundError:  # the file may be gone while its record, and so its lineage, is there
        if not reads_as_registry(reference):
            raise
        return workspace.get(reference)
    if located.record is not None:
        return located.record
    data = "+".join(each.hashes["data_sha256"] for each in inspect(located.path, hashes=True))
    with translated():
        same = workspace.registry.find(data_sha256=data)
    return same[-1] if same else None


def _remembered(workspace: Workspace, found: Lineage) -> dict[str, str]:
    """What the children of files that the registry never saw call them."""
    names: dict[str, str] = {}
    for child in {edge.child for edge in found.edges if found.nodes[edge.parent] is None}:
        record = found.nodes[child]
        recipe = None if record is None or record.deleted_at else workspace.registry.recipe(record.reference)
        told = recipe.document.get("parents", ()) if recipe is not None else ()
        edges = [edge for edge in found.edges if edge.child == child]
        if len(told) == len(edges):
            names |= {edge.parent: str(parent["name"]) for edge, parent in zip(edges, told, strict=True)}
    return names


def _node(sha256: str, record: VersionRecord | None, name: str | None) -> Node:
    if record is None:
        short = f"sha256:{sha256[:12]}"
        return Node(sha256, short if name is None else f"{name} ({short}, not registered)", None, None, None)
    label = record.reference if record.deleted_at is None else f"{record.reference} (in the trash)"
    return Node(sha256, label, record.reference, record.kind, record.base)


def _told(reference: str, document: Json, depth: int | None) -> Family:
    """What a file outside the registry says of its ancestors: its own provenance, and inside it that of its parents."""
    nodes = {reference: Node(reference, reference, None, None, None)}
    links: list[Link] = []

    def climb(child: str, told: Json, left: int | None) -> None:
        if left == 0:
            return
        weights = [weight for weight in told.get("weights") or () if isinstance(weight, (int, float))]
        for index, parent in enumerate(told.get("parents") or ()):
            if not isinstance(parent, Mapping):
                continue
            id_ = str(parent.get("data_sha256") or parent.get("name"))
            nodes[id_] = Node(id_, str(parent.get("name") or id_[:12]), None, None, None)
            links.append(Link(child, id_, float(weights[index]) if index < len(weights) else 1.0))
            if isinstance(parent.get("provenance"), Mapping):
                climb(id_, parent["provenance"], None if left is None else left - 1)

    climb(reference, document, depth)
    return Family(reference, nodes, tuple(dict.fromkeys(links)))


def _branches(found: Family, id_: str, upwards: bool, indent: str, seen: set[str]) -> Iterator[str]:
    ends = [
        (link.parent if upwards else link.child, link.weight)
        for link in found.links
        if (link.child if upwards else link.parent) == id_
    ]
    for index, (end, weight) in enumerate(ends):
        last = index == len(ends) - 1
        again = end in seen
        title = _title(found.nodes[end])
        text = f"{weight:g} x {title}" if upwards else f"{title}, {weight:g} x this"
        yield f"{indent}{'└─' if last else '├─'} {text}{' (see above)' if again and _has(found, end, upwards) else ''}"
        if not again:
            seen.add(end)
            yield from _branches(found, end, upwards, indent + ("   " if last else "│  "), seen)


def _has(found: Family, id_: str, upwards: bool) -> bool:
    return any((link.child if upwards else link.parent) == id_ for link in found.links)


def _title(node: Node) -> str:
    facts = ", ".join(fact for fact in (node.kind, node.base) if fact)
    return f"{node.label} ({facts})" if facts else node.label


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _operand(workspace: Workspace, source: Json) -> str:
    """How the parent is called now; by its recorded name when the registry does not have it."""
    with translated():
        same = workspace.registry.find(data_sha256=str(source.get("data_sha256")))
    named = str(source["source"])
    return next((each.reference for each in same if each.reference == named), same[-1].reference if same else named)


def _rule(text: str) -> list[str]:
    kind, _, number = text.rstrip(")").partition("(")
    flags = {"fixed": "--rank", "energy": "--energy", "relative": "--relative", "budget": "--max-size"}
    if kind not in flags:
        raise UsageError(f"no option asks for the rank rule {text}: run `lorahub rebuild`")
    return [flags[kind], number]
