"""Archives: what goes out comes back, twice is as once, and nothing enters of what is not as its manifest says."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorahub.errors import ConflictError, LorahubError, NotFoundError, UsageError, VerificationError
from lorahub.workspace import editing, removing
from lorahub.workspace.adding import add
from lorahub.workspace.archive import export, import_
from lorahub.workspace.core import Workspace
from registry import Parent, Recipe, Validation

Members = dict[str, bytes]


def fill(workspace: Workspace, tmp_path: Path, make_adapter: Callable[..., Path]) -> Workspace:
    """Two versions of `style`, one in place; `sum`, made from both."""
    add(workspace, [make_adapter(tmp_path / "style.safetensors", seed=1)], tags=["warm"], note="first")
    add(workspace, [make_adapter(tmp_path / "loras" / "style.safetensors", seed=2)], name="style", in_place=True)
    add(workspace, [make_adapter(tmp_path / "sum.safetensors", seed=3, base="sdxl", rank=4)])
    editing.edit(workspace, "style:1", base="flux1", run={"steps": 4}, trigger_words=["paper"])
    editing.untag(workspace, "style:2", "warm")
    editing.alias(workspace, "style:1", "prod")
    registry = workspace.registry
    facts = registry.get("sum")
    registry.add_version(
        "sum",
        facts,
        parents=[Parent(sha256=registry.get("style:1").file_sha256, weight=0.5, reference="style:1")],
        recipe=Recipe(
            method="linear", expression="0.5*style", tool="t", settings={"rank": 4}, seed=2**63, document={"a": 1}
        ),
    )
    registry.record_validations("sum", [Validation(check="mine", severity="warning", message="m", layer="l", tool="t")])
    return workspace


@pytest.fixture
def source(workspace: Workspace, tmp_path: Path, make_adapter: Callable[..., Path]) -> Workspace:
    return fill(workspace, tmp_path, make_adapter)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory, make_adapter: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    with Workspace.open(folder / "home") as workspace:
        export(fill(workspace, folder, make_adapter), [], folder / "all.tar")
    return folder / "all.tar"


@pytest.fixture
def archive(made_once: Path, tmp_path: Path) -> Path:
    """An archive of all that `source` holds, to do with as one likes."""
    return Path(shutil.copy(made_once, tmp_path / "all.tar"))


@pytest.fixture
def other(tmp_path: Path) -> Any:
    with Workspace.open(tmp_path / "other") as opened:
        yield opened


def everything(workspace: Workspace) -> dict[str, Any]:
    """All that an archive carries, by reference."""
    registry = workspace.registry
    found = {}
    for record in registry.find():
        exact = record.reference
        plain = replace(record, id=0, stored=True, created_at=record.seen_at, seen_at=record.seen_at)
        times = {"created_at": None, "seen_at": None}
        found[exact] = (
            {**vars(plain), **times},
            registry.norms(exact),
            registry.parents(exact),
            registry.recipe(exact),
            registry.validations(exact),
        )
    return found


def test_all_comes_back_in_an_empty_registry(source: Workspace, other: Workspace, tmp_path: Path) -> None:
    export(source, [], tmp_path / "mine.tar")
    imported = import_(other, tmp_path / "mine.tar")
    assert imported.added == ("style:1", "style:2", "sum:1")
    assert (imported.merged, imported.unchanged, imported.kept, imported.blobs) == ((), (), (), 3)
    assert everything(other) == everything(source)
    for record in other.registry.find():
        other.registry.blobs.verify(record.file_sha256)
    # An override can still be taken back: what was found came along beside it.
    editing.edit(other, "style:1", reset=["base", "trigger_words", "run"])
    assert other.get("style:1").base == "sd15"


def test_twice_is_as_once(archive: Path, other: Workspace) -> None:
    import_(other, archive)
    before = everything(other)
    again = import_(other, archive)
    assert again.unchanged == ("style:1", "style:2", "sum:1")
    assert (again.added, again.merged) == ((), ())
    assert everything(other) == before


def test_the_same_content_makes_the_same_bytes(source: Workspace, tmp_path: Path) -> None:
    export(source, [], tmp_path / "one.tar")
    export(source, ["sum", "style"], tmp_path / "two.tar")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_what_was_said_here_stays(archive: Path, other: Workspace) -> None:
    import_(other, archive)
    editing.edit(other, "style:1", base="sd2", notes="mine")
    editing.tag(other, "style:1", "mine")
    editing.alias(other, "style:2", "prod")
    merged = import_(other, archive)
    assert merged.kept == ("style@prod",)
    record = other.get("style:1")
    assert (record.base, record.notes, record.tags) == ("sd2", "mine", ("mine", "warm"))
    assert other.get("style@prod").number == 2
    forced = import_(other, archive, overwrite=True)
    assert (forced.kept, forced.merged) == ((), ("style:1",))
    record = other.get("style:1")
    assert (record.base, record.notes, record.tags) == ("flux1", "first", ("mine", "warm"))
    assert other.get("style@prod").number == 1


def test_another_file_becomes_the_next_version(
    archive: Path, other: Workspace, tmp_path: Path, make_adapter: Callable[..., Path]
) -> None:
    add(other, [make_adapter(tmp_path / "theirs.safetensors", seed=9)], name="style", tags=["theirs"])
    assert import_(other, archive).added == ("style:2", "style:3", "sum:1")
    assert other.get("style:1").tags == ("theirs",)
    assert other.get("style:2").tags == ("warm",)
    assert other.get("style:3").overrides == {}
    assert other.get("style@prod").number == 2
    assert [parent.reference for parent in other.registry.parents("sum")] == ["style:2"]


def test_what_is_in_the_trash_here_comes_back(archive: Path, other: Workspace) -> None:
    import_(other, archive)
    removing.remove(other, "sum")
    assert import_(other, archive).merged == ("sum:1",)
    assert other.get("sum").deleted_at is None


def test_some_versions_only(source: Workspace, other: Workspace, tmp_path: Path) -> None:
    done = export(source, ["style@prod", "style:1"], tmp_path / "one.tar")
    assert (done.versions, done.blobs) == (("style:1",), 1)
    assert import_(other, tmp_path / "one.tar").added == ("style:1",)
    assert export(source, "style", tmp_path / "both.tar").versions == ("style:1", "style:2")
    with pytest.raises(NotFoundError):
        export(source, ["style", "nobody"], tmp_path / "none.tar")
    assert not (tmp_path / "none.tar").exists()


def test_dry_runs_leave_nothing(source: Workspace, archive: Path, other: Workspace, tmp_path: Path) -> None:
    assert export(source, [], tmp_path / "dry.tar", dry_run=True).blobs == 3
    assert not (tmp_path / "dry.tar").exists()
    assert import_(other, archive, dry_run=True).added == ("style:1", "style:2", "sum:1")
    assert other.registry.find() == ()
    assert list(other.registry.blobs.blobs()) == []


def test_an_archive_that_is_there_is_not_replaced(source: Workspace, archive: Path) -> None:
    before = archive.read_bytes()
    with pytest.raises(ConflictError, match="--force"):
        export(source, "sum", archive)
    assert archive.read_bytes() == before
    export(source, "sum", archive, force=True)
    assert len(archive.read_bytes()) < len(before)


def test_a_file_that_changed_or_went_is_not_exported(source: Workspace, tmp_path: Path) -> None:
    place = tmp_path / "loras" / "style.safetensors"
    content = bytearray(place.read_bytes())
    content[-1] ^= 1
    place.write_bytes(content)
    with pytest.raises(VerificationError, match="not what was registered"):
        export(source, "style:2", tmp_path / "changed.tar")
    place.unlink()
    with pytest.raises(NotFoundError, match="missing"):
        export(source, "style:2", tmp_path / "gone.tar")
    assert [path.name for path in tmp_path.iterdir() if ".tar" in path.name] == []


# Archives that somebody else made


def members(path: Path) -> Members:
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


def packed(path: Path, content: Members, *extra: tarfile.TarInfo, format: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info in extra:
            tar.addfile(info)
    return path


def edited(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    content = members(path)
    manifest = json.loads(content["manifest.json"])
    change(manifest)
    content["manifest.json"] = json.dumps(manifest).encode()
    return packed(path.with_name("edited.tar"), content)


def refused(other: Workspace, path: Path, match: str, kind: type[LorahubError] = VerificationError) -> None:
    with pytest.raises(kind, match=match) as caught:
        import_(other, path)
    assert "\n" not in str(caught.value)
    assert other.registry.find() == ()
    assert list(other.registry.blobs.blobs()) == []
    assert not list((other.registry.home / "store").glob("incoming/*"))


def test_an_honest_archive_packed_again_is_taken(archive: Path, other: Workspace) -> None:
    assert import_(other, packed(archive.with_name("again.tar"), members(archive))).added


def test_one_flipped_byte(archive: Path, other: Workspace) -> None:
    content = members(archive)
    last = list(content)[-1]
    content[last] = content[last][:-1] + bytes([content[last][-1] ^ 1])
    refused(other, packed(archive.with_name("bad.tar"), content), "nothing was taken from it")


@pytest.mark.parametrize(
    "name",
    ["../escape", "/etc/passwd", "blobs/../../escape", "blobs/" + "0" * 64, "C:evil", "blobs/x\x1b[31m", "README"],
)
def test_a_member_the_manifest_does_not_name(archive: Path, other: Workspace, tmp_path: Path, name: str) -> None:
    refused(other, packed(tmp_path / "bad.tar", members(archive) | {name: b"x"}), "against its manifest")
    assert not (tmp_path.parent / "escape").exists()


def test_a_member_that_is_missing_or_twice(archive: Path, other: Workspace, tmp_path: Path) -> None:
    content = members(archive)
    first = list(content)[1]
    less = {name: data for name, data in content.items() if name != first}
    refused(other, packed(tmp_path / "less.tar", less), "lacks")
    twice = tmp_path / "twice.tar"
    packed(twice, content, tarfile.TarInfo(first))
    refused(other, twice, "twice")


@pytest.mark.parametrize("type", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices(archive: Path, other: Workspace, tmp_path: Path, type: bytes) -> None:
    info = tarfile.TarInfo("blobs/link")
    info.type, info.linkname = type, "/etc/passwd"
    refused(other, packed(tmp_path / "bad.tar", members(archive), info), "no plain file")


def test_sizes_are_those_of_the_manifest(archive: Path, other: Workspace, tmp_path: Path) -> None:
    content = members(archive)
    last = list(content)[-1]
    refused(other, packed(tmp_path / "long.tar", content | {last: content[last] + b"x"}), "its manifest says")
    info = tarfile.TarInfo("blobs/huge")
    info.size = 1 << 60
    refused(other, packed(tmp_path / "huge.tar", content, info), "cut short")


@pytest.mark.parametrize("cut", [0, 100, 512, 5000, -20000])
def test_an_archive_that_was_cut_short(archive: Path, other: Workspace, cut: int) -> None:
    archive.write_bytes(archive.read_bytes()[:cut])
    refused(other, archive, "not a tar file|not whole|cut short")


@pytest.mark.parametrize("content", [b"PK\x03\x04" + bytes(600), b"\x1f\x8b" + bytes(600), b"<html>" + bytes(600)])
def test_what_is_no_archive(other: Workspace, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    refused(other, tmp_path / "x.tar", "not a tar file")


def test_compression_is_not_understood(archive: Path, other: Workspace, tmp_path: Path) -> None:
    import gzip

    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(archive.read_bytes()))
    refused(other, tmp_path / "x.tar.gz", "not a tar file")
    refused(other, tmp_path / "nothing.tar", "no file", NotFoundError)


@pytest.mark.parametrize(
    "manifest", [b"", b"[]", b"[" * 200_000, b'{"format": NaN}', b"\xff", b'{"format": "lorahub-archive", "schema": 1}']
)
def test_a_manifest_that_is_none(other: Workspace, tmp_path: Path, manifest: bytes) -> None:
    refused(other, packed(tmp_path / "bad.tar", {"manifest.json": manifest}), "manifest")


def version(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["adapters"][0]["versions"][0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: version(m)["facts"].update(size="8"), r"versions\[0\].facts.size: expected int, got '8'"),
        (lambda m: version(m)["facts"].update(ranks={"unet": 8}), "expected list, got 8"),
        (lambda m: version(m)["facts"].update(kind="virus"), "kind"),
        (lambda m: version(m)["facts"].update(file_sha256="x"), "sha256"),
        (lambda m: version(m)["facts"].update(scale=True), "expected float, got True"),
        (lambda m: version(m)["facts"].update(extra=1), "unknown field 'extra'"),
        (lambda m: version(m).pop("facts"), "lacks 'facts'"),
        (lambda m: version(m).update(created_at="yesterday"), "ISO 8601"),
        (lambda m: m["blobs"].popitem(), "differ"),
        (lambda m: m.update(blobs={}), "differ"),
    ],
)
def test_a_manifest_that_lies(archive: Path, other: Workspace, change: Callable[..., object], match: str) -> None:
    refused(other, edited(archive, change), match)


@pytest.mark.parametrize("name", ["../up", "a/b", "", "nul", "x\x1b[31m", "a:1"])
def test_hostile_names_do_not_enter(archive: Path, other: Workspace, name: str) -> None:
    path = edited(archive, lambda manifest: manifest["adapters"][0].update(name=name))
    with pytest.raises(UsageError, match="cannot be an adapter name"):
        import_(other, path)
    assert other.registry.find() == ()


def test_all_or_nothing_when_the_last_record_is_wrong(archive: Path, other: Workspace) -> None:
    path = edited(archive, lambda manifest: manifest["adapters"][-1].update(aliases={"x": 99}))
    with pytest.raises(VerificationError, match="points at version 99"):
        import_(other, path)
    assert other.registry.find() == ()


def test_a_newer_archive_and_a_backup_are_told_apart(archive: Path, other: Workspace) -> None:
    refused(other, edited(archive, lambda manifest: manifest.update(schema=2)), "pip install --upgrade", UsageError)
    refused(other, edited(archive, lambda m: m.update(format="lorahub-backup")), "restore --backup", UsageError)
