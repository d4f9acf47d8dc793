from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from registry import (
    AmbiguousError,
    ConflictError,
    Facts,
    InvalidError,
    NotFoundError,
    Registry,
    RunSettings,
    Validation,
)

Make = Callable[..., Facts]


def test_every_fact_comes_back(registry: Registry, facts: Make) -> None:
    given = facts(
        "a",
        kind="acceleration",
        base_detected="sdxl",
        base_declared="sd15",
        evidence=("cross-attention 2048 -> sdxl", "ss_base_model_version says sd15"),
        ranks={"unet": (8, 64), "te1": (4,)},
        layers={"unet": 722, "te1": 72},
        parameters=2**40,
        dtype="float16",
        scale=0.125,
        data_sha256="d" * 64,
        fingerprint="f1:abc",
        autov3="abcdef012345",
        trigger_words=("lcm",),
        licence="openrail",
        previews=("p.png",),
        source={"repo": "latent-consistency/lcm-lora-sdxl", "commit": "c0ffee"},
        run=RunSettings(scheduler="LCMScheduler", scheduler_args={"eta": 0.3}, steps=4, guidance_max=2.0),
    )
    record = registry.add_version("lcm", given, norms={"unet.a": 1.5, "unet.b": 0.25}, tags=["fast"], notes="hi")
    assert {field: getattr(record, field) for field in given.__dataclass_fields__} == {
        field: getattr(given, field) for field in given.__dataclass_fields__
    }
    assert (record.name, record.number, record.latest, record.base) == ("lcm", 1, True, "sdxl")
    assert (record.tags, record.notes, record.rank, record.autov2) == (("fast",), "hi", 64, given.file_sha256[:10])
    assert record.created_at == record.seen_at
    assert abs(record.created_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert registry.get("lcm") == record
    assert registry.norms("lcm") == {"unet.a": 1.5, "unet.b": 0.25}


def test_metadata_no_database_can_hold_is_made_harmless(registry: Registry, facts: Make) -> None:
    nasty = "a\0b\ud800c"
    record = registry.add_version(
        "x", facts("a", licence=nasty, trigger_words=(nasty,), source={"path": nasty}), norms={nasty: 1.0}, notes=nasty
    )
    assert record.licence == record.notes == "a\ufffdb\ufffdc"
    assert record.trigger_words == (nasty,)
    assert registry.get("x").source == {"path": nasty}
    assert registry.norms("x") == {nasty: 1.0}


def test_facts_that_are_no_facts_are_refused(registry: Registry, facts: Make) -> None:
    for wrong in ({"file_sha256": "xyz"}, {"kind": "magic"}, {"scale": float("nan")}, {"size": -1}, {"autov3": "0xab"}):
        with pytest.raises(InvalidError):
            facts("a", **wrong)
    with pytest.raises(InvalidError, match="cannot be stored"):
        registry.add_version("x", facts("a", source={"value": float("nan")}))
    assert registry.list() == ()


def test_the_same_file_is_the_same_version(registry: Registry, facts: Make) -> None:
    first = registry.add_version("style", facts("a"), tags=["one"])
    again = registry.add_version("STYLE", facts("a"), tags=["two"])
    assert (again.id, again.number, again.tags, again.created_at) == (first.id, 1, ("one", "two"), first.created_at)
    assert again.seen_at > again.created_at
    assert registry.add_version("style", facts("b")).number == 2
    assert registry.add_version("other", facts("a")).number == 1
    assert [record.number for record in registry.versions("style")] == [1, 2]


def test_references_find_their_version(registry: Registry, facts: Make) -> None:
    one, two = registry.add_version("style", facts("a")), registry.add_version("style", facts("b"))
    registry.alias("style:1", "prod")
    assert registry.get("style").number == registry.get("Style:2").number == 2
    assert registry.get("style@prod").id == one.id
    assert registry.get(f"sha256:{two.file_sha256[:6]}").id == two.id
    assert registry.get(f"sha256:{two.file_sha256}").id == two.id
    for missing in ("style:3", "style@dev", "other", "sha256:000000"):
        with pytest.raises(NotFoundError):
            registry.get(missing)


def test_an_ambiguous_prefix_lists_its_candidates(registry: Registry, facts: Make) -> None:
    for name, end in (("a", "0"), ("b", "1")):
        registry.add_version(name, facts(name, file_sha256="abcdef" + end * 58))
    with pytest.raises(AmbiguousError, match="a:1, b:1") as error:
        registry.get("sha256:abcdef")
    assert error.value.candidates == ("a:1", "b:1")
    with pytest.raises(AmbiguousError):
        registry.remove("sha256:abcdef")
    assert registry.get("sha256:abcdef0").name == "a"


def test_list_filters_and_sorts(registry: Registry, facts: Make) -> None:
    registry.add_version("b", facts("b", base_detected="sdxl", ranks={"unet": (4, 8)}, kind="style"), tags=["x"])
    registry.add_version("A", facts("aaa", base_declared="sd15", ranks={"unet": (16,)}, format="peft"))
    registry.add_version("c", facts("cc", base_detected="sdxl"), tags=["x", "y"])

    def names(**filters: object) -> list[str]:
        return [adapter.name for adapter in registry.list(**filters)]  # type: ignore[arg-type]

    assert names() == ["A", "b", "c"]
    assert names(base="sdxl") == names(tag="x") == names(format="kohya") == ["b", "c"]
    assert names(base="sd15") == names(rank=16) == names(rank=(9, None)) == ["A"]
    assert names(rank=(None, 8)) == ["b", "c"]
    assert names(kind="style") == ["b"]
    assert names(sort="size") == ["b", "c", "A"]
    assert names(sort="-size", limit=1) == ["A"]
    assert names(sort="created") == ["b", "A", "c"]
    assert names(tag="nope") == []
    with pytest.raises(InvalidError, match="sort"):
        names(sort="colour")
    with pytest.raises(InvalidError, match="kind"):
        names(kind="colour")


def test_list_shows_versions_and_aliases_of_a_name(registry: Registry, facts: Make) -> None:
    for content in "abc":
        registry.add_version("style", facts(content))
    registry.alias("style:1", "prod")
    registry.remove("style:2")
    (adapter,) = registry.list()
    assert (adapter.versions, adapter.aliases, adapter.latest.number) == ((1, 3), {"prod": 1}, 3)


def test_names_complete_by_prefix(registry: Registry, facts: Make) -> None:
    for name in ("style_a", "Style-b", "stylXc", "other"):
        registry.add_version(name, facts(name))
    assert registry.names("style_") == ("style_a",)  # an underscore is no wildcard
    assert registry.names("STY") == ("Style-b", "style_a", "stylXc")
    assert registry.names(limit=1) == ("other",)


def test_an_override_is_sticky(registry: Registry, facts: Make) -> None:
    registry.add_version("x", facts("a", base_detected="sdxl", kind="other", licence="mit"))
    edited = registry.edit("x", base="pony", kind="style", licence="cc0", trigger_words=["w"], run=RunSettings(steps=4))
    assert (edited.base, edited.kind, edited.licence, edited.trigger_words) == ("pony", "style", "cc0", ("w",))
    assert (edited.run, edited.base_detected) == (RunSettings(steps=4), "sdxl")
    read_again = registry.refresh("x", facts("a", base_detected="sd15", kind="slider", licence="bsd"))
    assert (read_again.base, read_again.kind, read_again.licence) == ("pony", "style", "cc0")
    assert read_again.base_detected == "sd15"
    forgotten = registry.edit("x", reset=["base", "kind", "licence"])
    assert (forgotten.base, forgotten.kind, forgotten.licence) == ("sd15", "slider", "bsd")
    assert forgotten.trigger_words == ("w",)
    assert registry.list(base="sd15", kind="slider") != ()
    with pytest.raises(InvalidError):
        registry.edit("x", kind="magic")
    with pytest.raises(InvalidError, match="reset"):
        registry.edit("x", base="")
    with pytest.raises(InvalidError):
        registry.edit("x", reset=["size"])
    with pytest.raises(ConflictError):
        registry.refresh("x", facts("b"))


def test_an_override_passes_on_while_the_same_is_found(registry: Registry, facts: Make) -> None:
    registry.add_version("x", facts("a", base_detected="sdxl", licence="mit"), tags=["keep"])
    registry.edit("x", base="pony", licence="cc0")
    second = registry.add_version("x", facts("b", base_detected="sdxl", licence="bsd"))
    assert (second.base, second.licence, second.tags) == ("pony", "bsd", ("keep",))
    assert registry.add_version("x", facts("c", base_detected="flux")).base == "flux"


def test_tag_and_untag(registry: Registry, facts: Make) -> None:
    registry.add_version("x", facts("a"))
    assert registry.tag("x", "b", " a ", "b").tags == ("a", "b")
    assert registry.untag("x", "a", "never there").tags == ("b",)
    with pytest.raises(InvalidError):
        registry.tag("x", "ok", "not,ok")
    assert registry.get("x").tags == ("b",)


def test_aliases_move_and_remember(registry: Registry, facts: Make) -> None:
    registry.add_version("x", facts("a"))
    registry.add_version("x", facts("b"))
    assert registry.alias("x:1", "prod", by="ann").aliases == ("prod",)
    registry.alias("x:1", "prod", by="bob")
    assert registry.alias("x:2", "prod", by="bob").aliases == ("prod",)
    assert registry.get("x:1").aliases == ()
    registry.unalias("x", "prod")
    moves = [(move.previous, move.number, move.by) for move in registry.alias_history("x", "prod")]
    assert moves == [(None, 1, "ann"), (1, 2, "bob"), (2, None, None)]
    with pytest.raises(NotFoundError):
        registry.unalias("x", "prod")


def test_rename_keeps_everything(registry: Registry, facts: Make) -> None:
    registry.add_version("old", facts("a"), tags=["t"])
    registry.add_version("taken", facts("b"))
    registry.alias("old", "prod")
    with pytest.raises(ConflictError, match="exists"):
        registry.rename("old", "TAKEN")
    registry.rename("old", "Old")
    registry.rename("old", "new")
    assert registry.get("new@prod").tags == ("t",)
    assert [adapter.name for adapter in registry.search("new")] == ["new"]
    assert registry.search("old") == ()
    with pytest.raises(NotFoundError):
        registry.get("old")


def test_remove_and_restore(registry: Registry, facts: Make) -> None:
    for content in "ab":
        registry.add_version("x", facts(content), tags=["t"])
    registry.alias("x:1", "prod")
    with pytest.raises(ConflictError, match="x@prod"):
        registry.remove("x:1")
    assert [record.number for record in registry.remove("x:2")] == [2]
    assert registry.get("x").number == 1
    with pytest.raises(NotFoundError, match="restore x:2"):
        registry.get("x:2")
    assert [record.number for record in registry.remove("x")] == [1]
    assert registry.list() == registry.search("x") == registry.names() == ()
    assert [record.reference for record in registry.trash()] == ["x:1", "x:2"]
    with pytest.raises(NotFoundError):
        registry.remove("x")
    assert [record.number for record in registry.restore("x")] == [1, 2]
    assert registry.get("x@prod").number == 1
    assert registry.get("x").tags == ("t",)
    assert [adapter.name for adapter in registry.search("t")] == ["x"]
    with pytest.raises(NotFoundError):
        registry.restore("x")


def test_adding_a_file_in_the_trash_brings_it_back(registry: Registry, facts: Make) -> None:
    registry.add_version("x", facts("a"))
    registry.remove("x")
    assert registry.add_version("x", facts("a")).deleted_at is None
    assert registry.trash() == ()


def test_purge_is_for_good_and_numbers_are_not_reused(registry: Registry, facts: Make) -> None:
    for content in "abc":
        registry.add_version("x", facts(content))
    registry.remove("x:3")
    with pytest.raises(NotFoundError, match="not in the trash"):
        registry.purge("x:1")
    assert registry.purge(older_than=datetime.now(UTC) - timedelta(hours=1)) == 0
    assert registry.purge("x:3") == 1
    assert registry.add_version("x", facts("c")).number == 4
    registry.remove("x")
    assert registry.purge() == 3
    assert registry.purge() == 0
    with pytest.raises(NotFoundError):
        registry.versions("x")
    assert registry.check() == ()


def test_find_and_duplicates(registry: Registry, facts: Make) -> None:
    one = registry.add_version("a", facts("1", fingerprint="f", data_sha256="d" * 64))
    two = registry.add_version("b", facts("2", fingerprint="f"))
    registry.add_version("c", facts("3"))
    registry.add_version("d", facts("1", fingerprint="f"))
    assert [record.name for record in registry.find(file_sha256=one.file_sha256)] == ["a", "d"]
    assert [record.name for record in registry.find(fingerprint="f", file_sha256=two.file_sha256)] == ["b"]
    assert [record.name for record in registry.find(data_sha256="d" * 64)] == ["a"]
    assert [[r.name for r in group] for group in registry.duplicates()] == [["a", "b", "d"]]
    assert [[r.name for r in group] for group in registry.duplicates("file_sha256")] == [["a", "d"]]
    assert registry.duplicates("data_sha256") == ()
    with pytest.raises(InvalidError):
        registry.duplicates("size")


def test_a_check_replaces_its_own_findings_only(registry: Registry, facts: Make) -> None:
    registry.add_version("x", facts("a"))
    hashes = Validation(check="hash", severity="ok", tool="lorahub 1")
    registry.record_validations("x", [hashes, Validation(check="nan", severity="error", message="NaN", layer="l1")])
    registry.record_validations("x", [Validation(check="nan", severity="ok")])
    assert [(v.check, v.severity, v.at is not None) for v in registry.validations("x")] == [
        ("hash", "ok", True),
        ("nan", "ok", True),
    ]
    with pytest.raises(InvalidError):
        registry.record_validations("x", [Validation(check="hash", severity="dreadful")])


def test_a_transaction_is_all_or_nothing(registry: Registry, facts: Make) -> None:
    def interrupted() -> None:
        with registry.transaction():
            registry.add_version("x", facts("a"))
            assert registry.get("x").number == 1  # it sees its own writes
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert registry.list() == ()
    with registry.transaction():
        registry.add_version("x", facts("a"))
        with pytest.raises(ConflictError):  # a verb that fails undoes itself, not its neighbours
            registry.add_version("y", facts("b"), stored=True)
        registry.alias("x", "prod")
    assert [adapter.name for adapter in registry.list()] == ["x"]
    assert registry.get("x@prod").number == 1


def test_info_counts(registry: Registry, facts: Make) -> None:
    for name, content in (("x", "a"), ("x", "b"), ("y", "c"), ("z", "d")):
        registry.add_version(name, facts(content))
    registry.remove("z")
    info = registry.info()
    assert (info.adapters, info.versions, info.trashed, info.read_only) == (2, 3, 1, False)
    assert (info.search, info.journal) in (("fts5", "wal"), ("tsvector", None))
    assert "postgres@" in info.database or info.database.endswith("registry.db")
