"""Bytes on disk: crashes, races and full disks leave either the old file or the new one, and nothing beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorahub.errors import ConflictError, LorahubError, NotFoundError, VerificationError
from lorahub.files import store
from lorahub.files.store import replacing, tensor_bytes, write_safetensors
from lorahub.formats.encode import Encoded, Entry


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("force", [False, True])
def test_a_new_file_takes_its_name_when_the_block_ends_well(force: bool, tmp_path: Path) -> None:
    target = tmp_path / "a"
    with replacing(target, force=force) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert not target.exists()
    assert target.read_text() == "new"
    assert listing(tmp_path) == ["a"]


def put(target: Path, fill: Callable[[Path], object], *, force: bool = False) -> None:
    """Replace the target by what `fill` makes of the temporary path."""
    with replacing(target, force=force) as temporary:
        fill(temporary)


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("there", [False, True])
def test_a_failure_leaves_what_was_there(kind: str, there: bool, tmp_path: Path) -> None:
    target = tmp_path / "a"
    if there:
        target.write_text("old")

    def half(temporary: Path) -> None:
        if kind == "folder":
            temporary.mkdir()
            (temporary / "adapter_model.safetensors").write_text("half")
        else:
            temporary.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        put(target, half, force=True)
    assert listing(tmp_path) == (["a"] if there else [])
    assert not there or target.read_text() == "old"


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "a"
    with pytest.raises(ConflictError, match="exists already"):
        put(target, lambda temporary: (temporary.write_text("mine"), target.write_text("theirs")))
    assert target.read_text() == "theirs"
    assert listing(tmp_path) == ["a"]


@pytest.mark.parametrize("theirs", ["file", "folder"])
def test_a_folder_does_not_overwrite_what_appears_meanwhile(theirs: str, tmp_path: Path) -> None:
    target = tmp_path / "a"

    def race(temporary: Path) -> None:
        temporary.mkdir()
        if theirs == "file":
            target.write_text("theirs")
        else:
            (target / "theirs").mkdir(parents=True)

    with pytest.raises(ConflictError, match="exists already"):
        put(target, race)
    assert listing(tmp_path) == (["a"] if theirs == "file" else ["a", "a/theirs"])


def test_a_folder_that_appears_at_the_last_moment_is_a_conflict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the renaming there is no lock, but renaming onto a folder that holds something fails."""
    target = tmp_path / "a"
    (target / "theirs").mkdir(parents=True)
    monkeypatch.setattr(store.os.path, "lexists", lambda path: False)
    with pytest.raises(ConflictError, match="exists already"):
        put(target, Path.mkdir)
    assert listing(tmp_path) == ["a", "a/theirs"]


def test_the_old_folder_comes_back_when_the_new_one_cannot_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a"
    target.mkdir()
    (target / "adapter_config.json").write_text("old")
    rename = Path.rename

    def fail(path: Path, to: Path) -> Path:
        if path.name.endswith(".tmp"):
            raise PermissionError(13, "Permission denied")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(LorahubError, match=r"cannot write .*Permission denied"):
        put(target, Path.mkdir, force=True)
    assert (target / "adapter_config.json").read_text() == "old"
    assert listing(tmp_path) == ["a", "a/adapter_config.json"]


def test_without_hard_links_a_free_name_is_taken_and_a_used_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(path: Path, to: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", unsupported)
    with replacing(tmp_path / "a", force=False) as temporary:
        temporary.write_text("new")
    assert listing(tmp_path) == ["a"]
    target = tmp_path / "b"
    with pytest.raises(ConflictError, match="exists already"):
        put(target, lambda temporary: (temporary.write_text("mine"), target.write_text("theirs")))
    assert (tmp_path / "b").read_text() == "theirs"


def test_a_dangling_link_counts_as_something_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConflictError), replacing(tmp_path / "a", force=False):
        pass
    with replacing(tmp_path / "a", force=True) as temporary:
        temporary.write_text("new")
    assert not (tmp_path / "a").is_symlink()
    assert not (tmp_path / "nowhere").exists()


def test_a_link_to_a_folder_is_replaced_and_the_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "adapter_config.json").write_text("old")
    (tmp_path / "a").symlink_to(tmp_path / "real")
    with replacing(tmp_path / "a", force=True) as temporary:
        temporary.mkdir()
    assert listing(tmp_path) == ["a", "real", "real/adapter_config.json"]
    assert not (tmp_path / "a").is_symlink()


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in ("missing", "file"):
        with pytest.raises(NotFoundError, match=rf"no such folder: .*{folder}"):
            put(tmp_path / folder / "a", Path.touch, force=True)


def test_a_folder_that_cannot_be_written_is_told() -> None:
    """/proc takes no files, whoever asks."""
    if not Path("/proc/self").is_dir():
        pytest.skip("there is no /proc here")
    with pytest.raises(LorahubError, match="cannot write /proc/a"):
        put(Path("/proc/a"), Path.touch)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
import lorahub as lh
from lorahub.errors import LorahubError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as a full disk: writing fails with an error
folder, name, form = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
names = [f"unet.down_blocks.{n}.attentions.0.transformer_blocks.0.attn1.to_q" for n in range(3)]
sizes = [320, 640, 1280]
layers = {name: lh.LowRank.of(torch.ones(size, 8), torch.ones(8, size)) for name, size in zip(names, sizes)}
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    lh.save(lh.Adapter("sd15", layers), folder / name, format=form, force=True)
except LorahubError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(("name", "form"), [("a.safetensors", "kohya"), ("a", "peft")])
def test_a_full_disk_is_told_and_leaves_the_old_file(name: str, form: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    if form == "kohya":
        (folder / name).write_text("old")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FULL_DISK, str(folder), name, form],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert run.stdout.strip() == f"LorahubError cannot write {folder / name}: File too large"
    assert listing(folder) == ([name] if form == "kohya" else [])
    assert form == "peft" or (folder / name).read_text() == "old"


def entry(key: str, tensor: torch.Tensor, shape: tuple[int, ...] | None = None) -> Entry:
    return Entry(((key, shape or tuple(tensor.shape)),), tensor.dtype, lambda: (tensor,))


def test_an_entry_that_breaks_its_promise_is_an_error(tmp_path: Path) -> None:
    wrong = Encoded((entry("a", torch.ones(2, 3), (3, 2)),), {})
    with pytest.raises(VerificationError, match=r"a: planned with shape \[3, 2\], made with \[2, 3\]"):
        write_safetensors(tmp_path / "a", wrong)


def test_one_entry_at_a_time_is_in_memory(tmp_path: Path) -> None:
    """Entries are made as they are written, and none is kept: a file larger than memory can be written."""
    alive: list[int] = []
    held: list[weakref.ref[torch.Tensor]] = []

    def make() -> tuple[torch.Tensor, ...]:
        alive.append(sum(one() is not None for one in held))
        tensor = torch.ones(1000)
        held.append(weakref.ref(tensor))
        return (tensor,)

    entries = tuple(Entry(((f"t{n}", (1000,)),), torch.float32, make) for n in range(5))
    write_safetensors(tmp_path / "a", Encoded(entries, {}))
    assert len(alive) == 5
    assert max(alive) <= 1
    assert sum(one() is not None for one in held) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8])
def test_bytes_of_a_tensor_are_its_elements_in_row_order(dtype: torch.dtype) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    expected = b"".join(bytes(tensor[i, j].reshape(1).view(torch.uint8).tolist()) for i in (0, 1) for j in (0, 1, 2))
    assert bytes(tensor_bytes(tensor)) == expected
    assert bytes(tensor_bytes(tensor.T.contiguous().T)) == expected
    assert len(tensor_bytes(torch.zeros((), dtype=dtype))) == dtype.itemsize


def test_the_temporary_name_cannot_be_mistaken_for_an_adapter(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.safetensors", force=False) as temporary:
        temporary.touch()
        assert temporary.suffix == ".tmp"
        assert temporary.name.startswith(".a.safetensors.")
        assert os.listdir(tmp_path) == [temporary.name]  # noqa: PTH208
