from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from registry import Facts, InvalidError, Location, Registry, search

Make = Callable[..., Facts]


@pytest.fixture(params=["fts5", "like", "tsvector"])
def library(
    request: pytest.FixtureRequest, tmp_path: Path, facts: Make, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Registry]:
    """The same five adapters in each kind of index; `like` is what an SQLite without FTS5 does."""
    if request.param == "like":
        monkeypatch.setattr(search, "has_index", lambda session: False)
    url = request.getfixturevalue("postgres_database") if request.param == "tsvector" else None
    with Registry.open(tmp_path / "home", database_url=url) as registry:
        assert registry.info().search == request.param
        yield fill(registry, facts)


def fill(registry: Registry, facts: Make) -> Registry:
    place = Location(root="/r", relpath="my_folder/OddFile-v2.safetensors", size=1, mtime_ns=1, inode=1, device=1)
    registry.add_version("anime_style", facts(1, trigger_words=("Café crème", "1girl"), base_detected="sdxl"))
    registry.add_version("lcm-lora", facts(2, licence="openrail++", kind="acceleration"), location=place)
    registry.add_version("日本語", facts(3), tags=["art: line work"])
    registry.add_version("work_line", facts(4), notes="100% O'Brien's \"best\" OR AND NOT near(x)")
    registry.add_version("numbers", facts(5, source={"repo": "who/model-1e5-007"}))
    return registry


def found(registry: Registry, query: str, **filters: object) -> set[str]:
    return {adapter.name for adapter in registry.search(query, **filters)}  # type: ignore[arg-type]


FOUND: dict[str, set[str]] = {
    "anime": {"anime_style"},
    "ANI": {"anime_style"},
    "nime": set(),
    "cafe creme": {"anime_style"},
    "CAFÉ": {"anime_style"},
    "style 1girl": {"anime_style"},
    "anime lcm": set(),
    "oddfile": {"lcm-lora"},
    "my_folder/OddFile-v2": {"lcm-lora"},
    "openrail++": {"lcm-lora"},
    "acceleration": {"lcm-lora"},
    "line work": {"日本語", "work_line"},
    '"line work"': {"日本語"},
    '"work line"': {"work_line"},
    '"lin"': set(),
    '"line"': {"日本語", "work_line"},
    "日本": {"日本語"},
    "1e5": {"numbers"},
    "1e": {"numbers"},
    "007": {"numbers"},
    "7": set(),
    "100%": {"work_line"},
    "OR": {"work_line"},
    "NOT": {"work_line"},
    "near(x)": {"work_line"},
    "o'brien": {"work_line"},
    "kohya": {"anime_style", "lcm-lora", "日本語", "work_line", "numbers"},
}


def test_words_are_found(library: Registry) -> None:
    assert {query: found(library, query) for query in FOUND} == FOUND


HOSTILE = ['a"', "a*", "name:a", "^a", "a AND", "(a", "a)", "{a}: b", "-a", "NEAR(a b, 2)", "a' OR '1'='1", "a;--", "a & b",
           "!a", "a:*", "a <-> b", "\\a", "%a", "a_", "a\0b", "\ud800a", "a\x1b[0m", "a::tsquery", ":match"]  # fmt: skip


def test_query_syntax_is_only_text(library: Registry) -> None:
    for query in HOSTILE:
        assert found(library, query) == found(library, " ".join(search.words(query))), query


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec=None), max_size=40))
def test_no_query_breaks_the_database(library: Registry, query: str) -> None:
    try:
        expected_words = search.terms(query)
    except InvalidError:
        with pytest.raises(InvalidError):
            library.search(query)
    else:
        assert expected_words
        library.search(query)


@pytest.mark.parametrize("query", ["", "  ", '""', "!?*", "_", " ".join("abcdefghijklmnopqrstuvwxyz0123456")])
def test_a_query_needs_words_and_not_too_many(library: Registry, query: str) -> None:
    with pytest.raises(InvalidError):
        library.search(query)


def test_filters_and_limits_apply(library: Registry) -> None:
    assert found(library, "kohya", base="sdxl") == {"anime_style"}
    assert found(library, "kohya", kind="acceleration") == {"lcm-lora"}
    assert [a.name for a in library.search("kohya", sort="name", limit=2)] == ["anime_style", "lcm-lora"]


def test_what_changes_is_found_as_it_is_now(library: Registry, facts: Make) -> None:
    library.edit("numbers", notes="zebra", trigger_words=["quagga"])
    library.tag("numbers", "okapi")
    assert found(library, "zebra quagga okapi") == {"numbers"}
    library.edit("numbers", notes="", reset=["trigger_words"])
    library.untag("numbers", "okapi")
    assert found(library, "zebra") == found(library, "quagga") == found(library, "okapi") == set()
    library.add_version("anime_style", facts(6))  # only the newest version is searched
    assert found(library, "cafe") == set()
    library.remove("anime_style:2")
    assert found(library, "cafe") == {"anime_style"}


def test_a_huge_text_is_cut(library: Registry) -> None:
    library.edit("numbers", notes="x" * 1_000_000 + " " + " ".join(map(str, range(200_000))))
    assert found(library, "x" * 1000) == {"numbers"}


def test_the_index_is_rebuilt_from_the_rows(registry: Registry, facts: Make) -> None:
    registry.add_version("one", facts(1))
    registry.add_version("two", facts(2))
    registry.remove("two")
    assert registry.rebuild_search() == 1
    assert found(registry, "one") == {"one"}
    assert registry.check() == ()


def test_a_lost_index_is_found_and_rebuilt(sqlite_place: Any, facts: Make) -> None:
    with sqlite_place.open() as registry:
        registry.add_version("one", facts(1))
        connection = sqlite3.connect(sqlite_place.home / "registry.db")
        with connection:
            connection.execute("INSERT INTO search_index (search_index) VALUES ('delete-all')")
        connection.close()
        assert found(registry, "one") == set()
        registry.rebuild_search()
        assert found(registry, "one") == {"one"}
