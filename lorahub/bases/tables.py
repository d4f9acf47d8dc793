"""How a table of modules is kept on disk: repeated blocks once, with the range of their indices.

`{"transformer_blocks.{0-18}": {"attn.to_q": [3072, 3072]}}` stands for 19 layers. The rule: `unfold(fold(t))` is `t`,
in the same order, which for layers is the order in which the model itself lists them. Aliases are one line each; `{}`
in the layer they name stands for the index of the alias.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

Leaf = Any
"""A shape, a length, or the layers an alias stands for; never a dict."""

_RANGE = re.compile(r"\{(\d+)-(\d+)\}")
_BLOCK = re.compile(r"\b\w*(?:blocks|layers|refiner)\.(\d+)(?=\.)")


def fold(table: Mapping[str, Leaf]) -> dict[str, Any]:
    """The compact form of a table whose names follow the module tree, depth first."""
    return _written(_tree((name.split("."), leaf) for name, leaf in table.items()), "")


def unfold(folded: Mapping[str, Any]) -> Iterator[tuple[str, Leaf]]:
    """Every (module, leaf) a folded table stands for, in the order of the table it was made from."""
    for key, value in folded.items():
        if isinstance(value, dict):
            inside = [("." + name, leaf) for name, leaf in unfold(value)]
            for name in _spread(key):
                for tail, leaf in inside:
                    yield name + tail, leaf
        else:
            for name in _spread(key):
                yield name, value


def fold_aliases(aliases: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """Aliases with the block index they share with their layers written as a range."""
    folded: dict[str, Leaf] = {}
    groups: dict[tuple[str, str], tuple[Leaf, list[int]]] = {}
    for alias, leaf in aliases.items():
        number = _shared_block(alias, leaf)
        if number is None:
            folded[alias] = leaf
        else:
            opened = _renamed(leaf, _opened)
            groups.setdefault((_opened(alias), repr(opened)), (opened, []))[1].append(number)
    for (template, _), (opened, numbers) in groups.items():
        for start, stop in _runs(numbers):
            if start == stop:
                folded[template.replace("{}", str(start))] = _numbered(opened, start)
            else:
                folded[template.replace("{}", f"{{{start}-{stop}}}")] = opened
    return folded


def unfold_aliases(folded: Mapping[str, Leaf]) -> Iterator[tuple[str, Leaf]]:
    """Every (alias, layers) that folded aliases stand for."""
    for key, leaf in folded.items():
        match = _RANGE.search(key)
        if match is None:
            yield key, leaf
            continue
        head, tail = key[: match.start()], key[match.end() :]
        for number in range(int(match[1]), int(match[2]) + 1):
            yield f"{head}{number}{tail}", _numbered(leaf, number)


def _tree(paths: Iterable[tuple[list[str], Leaf]]) -> list[tuple[str, Any]]:
    """The module tree as ordered (name, subtree or (leaf,)) pairs; a tuple marks a leaf, so that subtrees compare."""
    branches: dict[str, list[tuple[list[str], Leaf]]] = {}
    leaves: dict[str, tuple[Leaf]] = {}
    for (first, *rest), leaf in paths:
        if rest:
            branches.setdefault(first, []).append((rest, leaf))
        else:
            branches.setdefault(first, [])
            leaves[first] = (leaf,)
    tree: list[tuple[str, Any]] = []
    for name, below in branches.items():
        if name in leaves and below:
            raise ValueError(f"{name} holds a weight and other modules: such a tree cannot be folded")
        tree.append((name, leaves[name] if name in leaves else _tree(below)))
    return tree


def _written(tree: list[tuple[str, Any]], prefix: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, child in _merged(tree):
        if isinstance(child, tuple):
            out[prefix + name] = child[0]
        elif name.startswith("{"):
            inside = _written(child, "")
            if len(inside) == 1:
                out |= {f"{prefix}{name}.{tail}": leaf for tail, leaf in inside.items()}
            else:
                out[prefix + name] = inside
        else:
            out |= _written(child, f"{prefix}{name}.")
    return out


def _merged(tree: list[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The children of a node, with runs of equal subtrees numbered one after another as one child `{first-last}`."""
    at = 0
    while at < len(tree):
        name, child = tree[at]
        end = at + 1
        if name.isdigit():
            while end < len(tree) and tree[end][0] == str(int(name) + end - at) and tree[end][1] == child:
                end += 1
        yield (name if end == at + 1 else f"{{{name}-{tree[end - 1][0]}}}"), child
        at = end


def _spread(key: str) -> list[str]:
    match = _RANGE.search(key)
    if match is None:
        return [key]
    tails = _spread(key[match.end() :])
    head = key[: match.start()]
    return [f"{head}{number}{tail}" for number in range(int(match[1]), int(match[2]) + 1) for tail in tails]


def _shared_block(alias: str, leaf: Leaf) -> int | None:
    """The index of the innermost block, when the alias and every layer it stands for are in the block of that index."""
    names = [leaf] if isinstance(leaf, str) else [name for name, _, _ in leaf]
    numbers = {int(found[-1][1]) if (found := list(_BLOCK.finditer(name))) else None for name in (alias, *names)}
    return numbers.pop() if len(numbers) == 1 else None


def _opened(name: str) -> str:
    """The name with `{}` for the index of its innermost block."""
    index = list(_BLOCK.finditer(name))[-1]
    return name[: index.start(1)] + "{}" + name[index.end(1) :]


def _numbered(leaf: Leaf, number: int) -> Leaf:
    return _renamed(leaf, lambda name: name.replace("{}", str(number)))


def _renamed(leaf: Leaf, rename: Callable[[str], str]) -> Leaf:
    """The leaf of an alias, a layer name or a list of [layer name, start, stop], with every name replaced."""
    if isinstance(leaf, str):
        return rename(leaf)
    return [[rename(name), start, stop] for name, start, stop in leaf]


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    ordered = sorted(numbers)
    start = previous = ordered[0]
    for number in ordered[1:]:
        if number != previous + 1:
            yield start, previous
            start = number
        previous = number
    yield start, previous
