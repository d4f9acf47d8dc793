"""Webdataset shards: real tar files, read by number."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import webdataset

from lorahub.distill.data_pictures import Picture
from lorahub.distill.data_shards import Shards
from lorahub.errors import FileFormatError, NotFoundError, UsageError
from tests.distill.data_files import encoded, noise, shard

IMAGES = [encoded(noise(number), "JPEG" if number % 2 else "PNG") for number in range(6)]


def pictures(found: Shards) -> list[tuple[bytes, str]]:
    return [(found[index].data, found[index].caption) for index in range(len(found))]


def write(folder: Path, numbers: range, name: str, kind: str = "txt") -> Path:
    files: list[tuple[str, bytes]] = []
    for number in numbers:
        text = f"picture {number}\n"
        caption = text if kind == "txt" else json.dumps({"caption": text.strip(), "width": 40})
        files += [
            (f"./part/{number:04d}.{'jpg' if number % 2 else 'png'}", IMAGES[number]),
            (f"./part/{number:04d}.{kind}", caption.encode()),
            (f"./part/{number:04d}.cls", b"7"),
        ]
    return shard(folder / name, files)


@pytest.mark.parametrize("kind", ["txt", "json"])
def test_samples_of_several_shards_by_number(tmp_path: Path, kind: str) -> None:
    write(tmp_path, range(4), "s-00.tar", kind)
    write(tmp_path, range(4, 6), "s-01.tar", kind)
    expected = [(image, f"picture {number}") for number, image in enumerate(IMAGES)]
    assert pictures(Shards(f"{tmp_path}/s-{{00..01}}.tar")) == expected
    assert pictures(Shards(f"{tmp_path}/s-*.tar")) == expected
    assert Shards(f"{tmp_path}/s-*.tar")[5] == Picture(f"{tmp_path}/s-01.tar sample 5", IMAGES[5], "picture 5")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves the shard open
def test_what_webdataset_writes_is_what_is_read(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number, image in enumerate(IMAGES):
            writer.write({"__key__": f"k{number}", "png": image, "txt": f"caption {number}"})
    theirs = [
        (sample["png"], sample["txt"].decode())
        for sample in webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)
    ]
    assert pictures(Shards(str(tmp_path / "a.tar"))) == theirs


def test_samples_without_caption_need_the_prompt(tmp_path: Path) -> None:
    path = shard(
        tmp_path / "a.tar", [("0.png", IMAGES[0]), ("1.png", IMAGES[2]), ("1.txt", b"one"), ("2.txt", b"none")]
    )
    with pytest.raises(UsageError, match=r"a.tar: \./0 has no .txt or .json: add it, or give one `prompt`"):
        Shards(str(path))
    assert pictures(Shards(str(path), prompt="all")) == [(IMAGES[0], "all"), (IMAGES[2], "one")]


def test_the_caption_in_json_can_be_named(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", [("0.png", IMAGES[0]), ("0.json", b'{"text": "short", "alt": "long"}')])
    assert Shards(str(path))[0].caption == "short"
    assert Shards(str(path), caption_column="alt")[0].caption == "long"
    with pytest.raises(FileFormatError, match="sample 0: its json should be an object with title"):
        Shards(str(path), caption_column="title")[0]


def test_refusals(tmp_path: Path) -> None:
    path = write(tmp_path, range(4), "a.tar")
    with pytest.raises(NotFoundError, match=r"no such shard: .*b-1.tar"):
        Shards(f"{tmp_path}/b-{{1,2}}.tar")
    with pytest.raises(UsageError, match="is remote: download them first"):
        Shards("https://example.org/{00..01}.tar")
    with pytest.raises(NotFoundError, match="no image"):
        Shards(str(shard(tmp_path / "t.tar", [("0.txt", b"x")])))
    (tmp_path / "z.tar").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(FileFormatError, match=r"z.tar is damaged or compressed .*: expected a plain tar file"):
        Shards(str(tmp_path / "z.tar"))
    (tmp_path / "cut.tar").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(FileFormatError, match=r"cut.tar is damaged"):
        Shards(str(tmp_path / "cut.tar"))
