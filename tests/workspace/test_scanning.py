from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from lorahub.errors import NotFoundError, UsageError
from lorahub.workspace.core import Workspace
from lorahub.workspace.scanning import scan

OLD = 1_600_000_000


@pytest.fixture
def make(make_adapter: Any) -> Any:
    """An adapter that was written long ago, so that its time tells whether it changed."""

    def write(path: Path, **given: Any) -> Path:
        made: Path = make_adapter(path, **given)
        os.utime(made, (OLD, OLD))
        return made

    return write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "loras").mkdir()
    return tmp_path / "loras"


def names(workspace: Workspace) -> list[str]:
    return [record.reference for record in workspace.registry.find()]


def tree(root: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path): (path.lstat().st_mtime_ns, path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in sorted(root.rglob("*"))
    }


def test_a_scan_records_every_file_and_writes_to_none(workspace: Workspace, root: Path, make: Any) -> None:
    make(root / "a.safetensors", seed=1)
    said = {"ss_base_model_version": "sdxl_base_v1-0"}
    make(root / "deep" / "er" / "b.SAFETENSORS", seed=2, base="sdxl", metadata=said)
    (root / "notes.txt").write_text("no adapter")
    before = tree(root)

    result = scan(workspace, [root])

    assert (result.files, result.new, result.hashed, result.to_hash, result.partial) == (2, 2, 2, 0, False)
    assert names(workspace) == ["a:1", "b:1"]
    assert workspace.get("b").base == "sdxl"
    assert workspace.get("a").hashed
    assert workspace.path(workspace.get("b")) == root / "deep" / "er" / "b.SAFETENSORS"
    assert tree(root) == before


def test_a_second_scan_reads_nothing(workspace: Workspace, root: Path, make: Any) -> None:
    path = make(root / "a.safetensors")
    scan(workspace, [root])
    path.chmod(0)  # a read would fail, unless by root
    changes = (workspace.registry.home / "journal.jsonl").stat().st_size

    result = scan(workspace)

    assert (result.unchanged, result.new, result.hashed, result.skipped) == (1, 0, 0, ())
    assert (workspace.registry.home / "journal.jsonl").stat().st_size == changes


def test_headers_first_and_hashes_later(workspace: Workspace, root: Path, make: Any) -> None:
    path = make(root / "a.safetensors")

    first = scan(workspace, [root], hash=False)

    record = workspace.get("a")
    assert (first.new, first.hashed, first.to_hash) == (1, 0, 1)
    assert (record.hashed, record.autov2, record.base) == (False, None, "sd15")
    with pytest.raises(NotFoundError):
        workspace.get(f"sha256:{record.file_sha256}")
    workspace.registry.tag("a", "mine")

    second = scan(workspace, [root])

    record = workspace.get("a")
    assert (second.new, second.hashed, second.to_hash) == (0, 1, 0)
    assert (record.hashed, record.number, record.tags) == (True, 1, ("mine",))
    assert workspace.get(f"sha256:{record.file_sha256[:12]}") == record
    assert [one.check for one in workspace.registry.validations("a")] == ["hashes"]
    assert path.is_file()


def test_a_moved_or_renamed_file_keeps_its_version_and_edits(workspace: Workspace, root: Path, make: Any) -> None:
    path = make(root / "a.safetensors")
    scan(workspace, [root], hash=False)
    workspace.registry.edit("a", notes="mine")
    (root / "new").mkdir()
    path.rename(root / "new" / "other.safetensors")

    result = scan(workspace, [root], hash=False)

    assert (result.moved, result.new, result.missing) == (1, 0, 0)
    assert names(workspace) == ["a:1"]
    assert workspace.get("a").notes == "mine"
    assert workspace.path(workspace.get("a")) == root / "new" / "other.safetensors"


def test_a_file_copied_elsewhere_and_deleted_is_known_by_its_hash(workspace: Workspace, root: Path, make: Any) -> None:
    path = make(root / "a.safetensors")
    scan(workspace, [root])
    workspace.registry.tag("a", "mine")
    shutil.copyfile(path, root / "b.safetensors")
    path.unlink()

    result = scan(workspace, [root])

    assert (result.moved, result.missing) == (1, 1)
    assert names(workspace) == ["a:1"]
    assert workspace.get("a").tags == ("mine",)
    assert [place.relpath for place in workspace.registry.locations()] == ["b.safetensors"]


def test_a_replaced_file_is_a_new_version_and_a_touched_one_is_not(workspace: Workspace, root: Path, make: Any) -> None:
    path = make(root / "a.safetensors", seed=1)
    first = path.read_bytes()
    scan(workspace, [root])
    os.utime(path, (OLD + 100, OLD + 100))

    touched = scan(workspace, [root])
    assert (touched.hashed, touched.replaced, names(workspace)) == (1, 0, ["a:1"])
    assert scan(workspace, [root]).unchanged == 1

    make(path, seed=2)
    replaced = scan(workspace, [root])
    assert (replaced.replaced, names(workspace)) == (1, ["a:1", "a:2"])

    path.write_bytes(first)
    back = scan(workspace, [root])
    assert (back.replaced, names(workspace)) == (1, ["a:1", "a:2"])
    assert [place.reference for place in workspace.registry.locations()] == ["a:1"]


def test_without_hashing_a_change_waits(workspace: Workspace, root: Path, make: Any) -> None:
    path = make(root / "a.safetensors", seed=1)
    scan(workspace, [root])
    make(path, seed=2)
    os.utime(path, (OLD + 9, OLD + 9))

    assert scan(workspace, [root], hash=False).to_hash == 1
    assert names(workspace) == ["a:1"]
    assert scan(workspace, [root]).replaced == 1


def test_a_change_within_the_clocks_step_is_not_missed(workspace: Workspace, root: Path, make_adapter: Any) -> None:
    path = make_adapter(root / "a.safetensors", seed=1)
    scan(workspace, [root])
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    with path.open("r+b") as file:  # same inode, same size
        file.write(content)
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))

    assert scan(workspace, [root]).replaced == 1


def test_times_in_the_future_and_long_ago_are_only_times(workspace: Workspace, root: Path, make_adapter: Any) -> None:
    for name, when in (("future", 4_000_000_000), ("past", 0)):
        path = make_adapter(root / f"{name}.safetensors", seed=when % 97)
        os.utime(path, (when, when))
    scan(workspace, [root])

    again = scan(workspace, [root])

    assert (again.unchanged, again.hashed, again.replaced) == (1, 1, 0)  # the future is read again each time
    assert names(workspace) == ["future:1", "past:1"]


def test_gone_files_are_marked_and_come_back(workspace: Workspace, root: Path, make: Any) -> None:
    make(root / "b.safetensors", seed=2)
    path = make(root / "a.safetensors", seed=1)
    scan(workspace, [root])
    path.rename(root.parent / "away")

    gone = scan(workspace, [root])
    assert (gone.missing, gone.partial) == (1, False)
    assert [record.reference for record in workspace.registry.unreachable()] == ["a:1"]

    (root.parent / "away").rename(path)
    back = scan(workspace, [root])
    assert (back.returned, back.hashed, workspace.registry.unreachable()) == (1, 0, ())


@pytest.mark.parametrize("how", ["gone", "empty"])
def test_an_offline_drive_deletes_nothing(workspace: Workspace, root: Path, make: Any, how: str) -> None:
    make(root / "sub" / "a.safetensors")
    scan(workspace, [root])
    workspace.registry.tag("a", "mine")
    root.rename(root.parent / "unplugged")
    if how == "empty":
        root.mkdir()

    result = scan(workspace)

    assert (result.offline, result.missing, result.partial) == ((str(root),), 1, True)
    assert workspace.get("a").tags == ("mine",)
    if how == "empty":
        root.rmdir()
    (root.parent / "unplugged").rename(root)
    assert scan(workspace).returned == 1
    assert workspace.path(workspace.get("a")).is_file()


def test_one_stem_in_several_folders(workspace: Workspace, root: Path, make: Any) -> None:
    for number, folder in enumerate(("x", "y", "y/z", "")):
        make(root / folder / "style.safetensors", seed=number)

    scan(workspace, [root])

    assert names(workspace) == ["style:1", "x-style:1", "y-style:1", "z-style:1"]


def test_the_same_file_twice_is_two_names_but_a_hard_link_is_one(workspace: Workspace, root: Path, make: Any) -> None:
    path = make(root / "a.safetensors")
    shutil.copyfile(path, root / "copy.safetensors")
    (root / "twin.safetensors").hardlink_to(path)

    scan(workspace, [root])

    assert names(workspace) == ["a:1", "copy:1"]
    assert [place.relpath for place in workspace.registry.locations(reference="a")] == [
        "a.safetensors",
        "twin.safetensors",
    ]
    assert scan(workspace, [root]).new == 0


def test_what_is_no_adapter_is_skipped_with_its_reason(workspace: Workspace, root: Path, make: Any) -> None:
    make(root / "good.safetensors")
    (root / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n")
    (root / "short.safetensors").write_bytes(b"123")
    os.mkfifo(root / "pipe.safetensors")
    (root / "dangling.safetensors").symlink_to(root / "nothing")
    (root / "link.safetensors").symlink_to(root / "good.safetensors")
    (root / "dir.safetensors").mkdir()
    (root / "loop").symlink_to(root)

    result = scan(workspace, [root])

    reasons = {Path(path).name: reason for path, reason in result.skipped}
    assert sorted(reasons) == [
        "dangling.safetensors",
        "link.safetensors",
        "pipe.safetensors",
        "pointer.safetensors",
        "short.safetensors",
    ]
    assert "git-lfs pointer" in reasons["pointer.safetensors"]
    assert "pipe" in reasons["pipe.safetensors"]
    assert "link to nothing" in reasons["dangling.safetensors"]
    assert (names(workspace), result.partial) == (["good:1"], True)


def test_links_are_followed_only_on_request_and_never_in_circles(workspace: Workspace, root: Path, make: Any) -> None:
    outside = make(root.parent / "outside" / "a.safetensors")
    (root / "there").symlink_to(outside.parent)
    (root / "circle").symlink_to(root)

    assert scan(workspace, [root]).files == 0
    followed = scan(workspace, [root], follow_links=True)
    assert (followed.files, names(workspace)) == (1, ["a:1"])
    assert ["visited already" in reason for _, reason in followed.skipped] == [True]


def test_names_that_are_not_text(workspace: Workspace, root: Path, make: Any) -> None:
    path = make(root / "a.safetensors")
    path.rename(os.fsdecode(os.fsencode(root) + b"/b\xff\x1b[31m.safetensors"))

    result = scan(workspace, [root])

    assert (result.new, names(workspace)) == (1, ["b_31m:1"])
    assert workspace.path(workspace.get("b_31m")).is_file()
    assert scan(workspace, [root]).unchanged == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_hides_nothing(workspace: Workspace, root: Path, make: Any) -> None:
    make(root / "closed" / "a.safetensors")
    scan(workspace, [root])
    (root / "closed").chmod(0)
    try:
        result = scan(workspace, [root])
    finally:
        (root / "closed").chmod(0o755)

    assert (result.missing, len(result.skipped)) == (0, 1)


def test_a_folder_inside_a_root_belongs_to_it(workspace: Workspace, root: Path, make: Any) -> None:
    make(root / "sub" / "a.safetensors", seed=1)
    make(root / "b.safetensors", seed=2)
    scan(workspace, [root])
    make(root / "sub" / "c.safetensors", seed=3)
    (root / "b.safetensors").unlink()

    inner = scan(workspace, [root / "sub"])

    assert (inner.new, inner.unchanged, inner.missing) == (1, 1, 0)
    assert workspace.registry.roots() == (str(root),)


def test_a_root_around_a_root_records_no_file_twice(workspace: Workspace, root: Path, make: Any) -> None:
    make(root / "sub" / "a.safetensors", seed=1)
    make(root / "b.safetensors", seed=2)
    scan(workspace, [root / "sub"])

    outer = scan(workspace, [root])

    assert (outer.new, outer.unchanged, names(workspace)) == (1, 1, ["a:1", "b:1"])
    assert len(workspace.registry.locations()) == 2


def test_a_dry_run_counts_and_changes_nothing(workspace: Workspace, root: Path, make: Any) -> None:
    make(root / "a.safetensors")
    before = tree(workspace.registry.home)

    result = scan(workspace, [root], dry_run=True)

    assert (result.new, names(workspace)) == (1, [])
    assert tree(workspace.registry.home) == before


def test_roots_that_are_none(workspace: Workspace, root: Path, make: Any) -> None:
    with pytest.raises(NotFoundError, match="no such folder"):
        scan(workspace, [root / "nowhere"])
    with pytest.raises(UsageError, match="add --in-place"):
        scan(workspace, [make(root / "a.safetensors")])


def test_peft_folders_are_called_as_their_folder(workspace: Workspace, root: Path, make: Any) -> None:
    path = make(root / "my-peft" / "adapter_model.safetensors", spelling="diffusers")
    (path.parent / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')

    scan(workspace, [root])

    assert (names(workspace), workspace.get("my-peft").scale) == (["my-peft:1"], 2.0)


@pytest.mark.parametrize(("phase", "left"), [("headers", 3), ("hashing", 2)])
def test_an_interrupted_scan_goes_on_where_it_was(
    workspace: Workspace, root: Path, make: Any, phase: str, left: int
) -> None:
    for number in range(3):
        make(root / f"{number}.safetensors", seed=number)

    def interrupt(now: str, done: int, total: int) -> None:
        if now == phase:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(workspace, [root], progress=interrupt)
    result = scan(workspace, [root])

    assert (result.new, result.hashed, len(names(workspace))) == (0, left, 3)
    assert all(record.hashed for record in workspace.registry.find())


def test_weights_are_read_on_request_also_later(workspace: Workspace, root: Path, make: Any) -> None:
    make(root / "a.safetensors")
    scan(workspace, [root])
    assert workspace.get("a").fingerprint is None
    make(root / "b.safetensors", seed=3)

    assert scan(workspace, [root], weights=True).hashed == 2

    for name in "ab":
        assert workspace.get(name).fingerprint
        assert len(workspace.registry.norms(name)) == 12
    assert scan(workspace, [root], weights=True).hashed == 0
