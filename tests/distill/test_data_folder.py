"""A folder of images: which are found, in which order, and what their captions are."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorahub.distill.data_folder import Folder
from lorahub.errors import FileFormatError, NotFoundError, UsageError
from tests.distill.data_files import encoded, folder, metadata, noise


def captions(found: Folder, root: Path) -> dict[str, str]:
    pictures = [found[index] for index in range(len(found))]
    return {Path(each.name).relative_to(root).as_posix(): each.caption for each in pictures}


def test_sidecars_at_any_depth_in_the_order_of_names(tmp_path: Path) -> None:
    names = {"b.png": "bee", "a/z.JPG": " ünder\n", "a/deep/er/c.webp": "sea", "B/a.png": "", "a.png": "ay"}
    folder(tmp_path, names)
    (tmp_path / "notes.md").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.png").write_bytes(b"")
    found = Folder(tmp_path)
    assert captions(found, tmp_path) == {name: text.strip() for name, text in names.items()}
    order = [Path(found[index].name) for index in range(len(found))]
    assert order == sorted(order)
    assert found[0].data == Path(found[0].name).read_bytes()


def test_metadata_is_asked_before_sidecars_and_those_before_the_prompt(tmp_path: Path) -> None:
    folder(tmp_path, {"a.png": "from the file", "sub/b.png": "beside", "sub/c.png": "beside too"})
    (tmp_path / "d.png").write_bytes(encoded(noise(0)))
    metadata(tmp_path, [{"file_name": "a.png", "text": "listed"}, {"file_name": "sub/b.png", "text": "listed above"}])
    assert captions(Folder(tmp_path, prompt="in sks style"), tmp_path) == {
        "a.png": "listed",
        "d.png": "in sks style",
        "sub/b.png": "listed above",
        "sub/c.png": "beside too",
    }


def test_metadata_of_a_nested_folder_is_about_that_folder(tmp_path: Path) -> None:
    folder(tmp_path, {"a/x.png": "", "b/x.png": ""})
    for name in "ab":
        metadata(tmp_path / name, [{"file_name": "x.png", "caption": f"in {name}", "width": 3}])
    assert captions(Folder(tmp_path), tmp_path) == {"a/x.png": "in a", "b/x.png": "in b"}


def test_the_caption_column_can_be_named(tmp_path: Path) -> None:
    folder(tmp_path, {"a.png": ""})
    metadata(tmp_path, [{"file_name": "a.png", "text": "short", "long": "long text"}])
    assert Folder(tmp_path)[0].caption == "short"
    assert Folder(tmp_path, caption_column="long")[0].caption == "long text"
    with pytest.raises(FileFormatError, match=r"metadata.jsonl, line 1: expected an object with file_name and none"):
        Folder(tmp_path, caption_column="none")


def test_refusals_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=f"no such folder of images: {tmp_path}/none"):
        Folder(tmp_path / "none")
    with pytest.raises(NotFoundError, match=r"no image .*png"):
        Folder(tmp_path)
    (tmp_path / "a.png").write_bytes(encoded(noise(0)))
    with pytest.raises(
        UsageError, match=r"a.png has no caption: write a.txt or metadata.jsonl .* or give one `prompt`"
    ):
        Folder(tmp_path)
    metadata(tmp_path, [{"file_name": "a.png", "text": "x"}, {"file_name": "gone.png", "text": "y"}])
    with pytest.raises(NotFoundError, match=r"lists .*gone.png, which is not there \(1 in all\)"):
        Folder(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n\nnot json\n')
    with pytest.raises(
        FileFormatError, match="line 3: expected an object with file_name and text or caption or prompt"
    ):
        Folder(tmp_path)
