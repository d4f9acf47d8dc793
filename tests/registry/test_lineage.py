from __future__ import annotations

from collections.abc import Callable

import pytest

from registry import ConflictError, Edge, Facts, NotFoundError, Parent, Recipe, Registry

Make = Callable[..., Facts]
RECIPE = Recipe(
    method="linear",
    expression="0.8*style - 0.5*blur",
    tool="lorahub 0.1.0",
    settings={"rank": 64, "dtype": "float16"},
    seed=2**64 - 1,
    document={"version": 1, "steps": [{"add": ["style", "blur"]}]},
)


def test_parents_and_recipe_come_back_in_order(registry: Registry, facts: Make) -> None:
    style, blur = registry.add_version("style", facts("s")), registry.add_version("blur", facts("b"))
    terms = [
        Parent(sha256=style.file_sha256, weight=0.8, reference="style"),
        Parent(sha256="0" * 64, weight=1e-30),
        Parent(sha256=blur.file_sha256, weight=-0.5, reference="blur:1"),
    ]
    registry.add_version("sum", facts("sum"), parents=terms, recipe=RECIPE)
    found = registry.parents("sum")
    assert [(p.weight, p.reference) for p in found] == [(0.8, "style:1"), (1e-30, None), (-0.5, "blur:1")]
    assert registry.recipe("sum") == RECIPE
    assert registry.recipe("style") is None
    assert registry.parents("style") == ()


def test_adding_again_without_lineage_keeps_it(registry: Registry, facts: Make) -> None:
    registry.add_version("sum", facts("sum"), parents=[Parent(sha256="0" * 64)], recipe=RECIPE)
    registry.add_version("sum", facts("sum"))
    assert len(registry.parents("sum")) == 1
    registry.add_version("sum", facts("sum"), parents=[Parent(sha256="1" * 64, weight=2.0)])
    assert [p.weight for p in registry.parents("sum")] == [2.0]
    assert registry.recipe("sum") == RECIPE


def test_a_parent_that_is_another_file_is_refused(registry: Registry, facts: Make) -> None:
    registry.add_version("style", facts("s"))
    with pytest.raises(ConflictError, match="style"):
        registry.add_version("sum", facts("sum"), parents=[Parent(sha256="0" * 64, reference="style")])
    with pytest.raises(NotFoundError):
        registry.add_version("sum", facts("sum"), parents=[Parent(sha256="0" * 64, reference="nobody")])
    assert registry.names() == ("style",)


def test_a_bare_hash_is_named_once_the_file_is_known(registry: Registry, facts: Make) -> None:
    late = facts("late")
    registry.add_version("sum", facts("sum"), parents=[Parent(sha256=late.file_sha256)])
    registry.add_version("late", late)
    assert registry.parents("sum")[0].reference == "late:1"


def test_lineage_outlives_its_parents(registry: Registry, facts: Make) -> None:
    style = registry.add_version("style", facts("s"))
    registry.add_version("sum", facts("sum"), parents=[Parent(sha256=style.file_sha256, reference="style")])
    registry.remove("style")
    assert registry.parents("sum")[0].reference == "style:1"
    assert registry.lineage("sum").nodes[style.file_sha256].deleted_at is not None  # type: ignore[union-attr]
    registry.purge()
    assert registry.parents("sum") == (Parent(sha256=style.file_sha256, weight=1.0),)
    assert registry.lineage("sum").nodes[style.file_sha256] is None


def test_the_whole_family_is_found(registry: Registry, facts: Make) -> None:
    def add(name: str, *parents: str) -> str:
        terms = [Parent(sha256=registry.get(parent).file_sha256, reference=parent) for parent in parents]
        return registry.add_version(name, facts(name), parents=terms).file_sha256

    a, b, c, d = add("a"), add("b"), add("c", "a", "b"), add("d", "c", "c", "a")
    other = add("other", "b")
    family = registry.lineage("c")
    assert family.root == c
    assert {sha: record.name for sha, record in family.nodes.items() if record} == {a: "a", b: "b", c: "c", d: "d"}
    assert other not in family.nodes  # a sibling is no ancestor and no descendant
    assert set(family.edges) == {
        Edge(child=c, parent=a, position=0, weight=1.0),
        Edge(child=c, parent=b, position=1, weight=1.0),
        Edge(child=d, parent=c, position=0, weight=1.0),
        Edge(child=d, parent=c, position=1, weight=1.0),
    }
    assert set(registry.lineage("d").nodes) == {a, b, c, d}
    assert set(registry.lineage("d", depth=1).nodes) == {a, c, d}
    assert set(registry.lineage("a", depth=0).nodes) == {a}


def test_a_deep_shared_lineage_is_quick(registry: Registry, facts: Make) -> None:
    with registry.transaction():
        sha256 = registry.add_version("n0", facts(0)).file_sha256
        for number in range(1, 40):  # 2**40 paths
            twice = [Parent(sha256=sha256), Parent(sha256=sha256)]
            sha256 = registry.add_version(f"n{number}", facts(number), parents=twice).file_sha256
    assert len(registry.lineage("n39").nodes) == len(registry.lineage("n0").nodes) == 40


def test_a_cycle_ends(registry: Registry, facts: Make) -> None:
    one, two = facts(1), facts(2)
    registry.add_version("one", one, parents=[Parent(sha256=two.file_sha256)])
    registry.add_version("two", two, parents=[Parent(sha256=one.file_sha256)])
    assert len(registry.lineage("one").edges) == 2
