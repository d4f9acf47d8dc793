"""Hugging Face datasets that lie on disk, as `datasets` writes and finds them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from lorahub.distill.data_dataset import HubDataset
from lorahub.errors import NotFoundError, UsageError
from tests.distill.data_files import encoded, folder, metadata, noise

IMAGES = [encoded(noise(number)) for number in range(3)]
TEXTS = ["one", "two", "three"]


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's own cache is read or written, and nothing is asked of the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def rows(caption: str = "text", **more: list[object]) -> datasets.Dataset:
    columns = {"image": [{"bytes": image, "path": None} for image in IMAGES], caption: TEXTS, "width": [40] * 3, **more}
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def to_disk(path: Path) -> str:
    rows().save_to_disk(path)
    return str(path)


def to_disk_with_splits(path: Path) -> str:
    datasets.DatasetDict({"train": rows(), "test": rows()}).save_to_disk(path)
    return str(path)


def to_parquet(path: Path) -> str:
    path.mkdir()
    rows().to_parquet(path / "train-00000.parquet")
    return str(path)


def to_imagefolder(path: Path) -> str:
    folder(path, {f"{number}.png": "" for number in range(3)})
    for file in path.glob("*.txt"):
        file.unlink()
    metadata(path, [{"file_name": f"{number}.png", "text": TEXTS[number]} for number in range(3)])
    return str(path)


@pytest.mark.parametrize("write", [to_disk, to_disk_with_splits, to_parquet, to_imagefolder])
def test_every_way_to_keep_one_gives_the_bytes_that_were_stored(tmp_path: Path, write: Callable[[Path], str]) -> None:
    found = HubDataset(write(tmp_path / "data"))
    assert len(found) == 3
    assert [found[index].data for index in range(3)] == IMAGES
    assert [found[index].caption for index in range(3)] == TEXTS
    assert found[1].name == f"{tmp_path}/data[train] row 1"


def test_columns_are_found_by_type_or_named(tmp_path: Path) -> None:
    buffers = [{"bytes": data, "path": None} for data in reversed(IMAGES)]
    both = rows("legend", other=buffers).cast_column("other", datasets.Image())
    both.save_to_disk(tmp_path / "data")
    name = str(tmp_path / "data")
    with pytest.raises(
        UsageError, match=r"one image column was expected: name it .* images are in image, other of image"
    ):
        HubDataset(name)
    with pytest.raises(UsageError, match=r"no caption column: name it with caption_column.* texts are in legend of"):
        HubDataset(name, image_column="other")
    with pytest.raises(UsageError, match="no text column 'width'; texts are in legend"):
        HubDataset(name, image_column="other", caption_column="width", prompt="x")
    with pytest.raises(UsageError, match="no image column 'legend'"):
        HubDataset(name, image_column="legend")
    found = HubDataset(name, image_column="other", caption_column="legend")
    assert (found[0].data, found[0].caption) == (IMAGES[2], "one")
    assert HubDataset(name, image_column="image", prompt="all")[0].caption == "all"


def test_rows_that_lack_something_are_named(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    holes = {"image": [{"bytes": IMAGES[0], "path": None}, None], "text": [None, "two"]}
    datasets.Dataset.from_dict(holes, features=features).save_to_disk(tmp_path / "data")
    found = HubDataset(str(tmp_path / "data"))
    with pytest.raises(UsageError, match="row 0 has no text"):
        found[0]
    with pytest.raises(UsageError, match="row 1 has no image"):
        found[1]


def test_images_are_decoded_by_nobody_but_us(tmp_path: Path) -> None:
    broken = {"image": [{"bytes": b"no image", "path": None}], "text": ["x"]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(broken, features=features).save_to_disk(tmp_path / "data")
    assert io.BytesIO(HubDataset(str(tmp_path / "data"))[0].data).read() == b"no image"


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="with a split validation"):
        HubDataset(to_disk_with_splits(tmp_path / "data"), split="validation")
    with pytest.raises(UsageError, match=r"cannot load the dataset .*validation"):
        HubDataset(to_parquet(tmp_path / "parquet"), split="validation")
    with pytest.raises(NotFoundError, match="no dataset"):
        HubDataset(str(tmp_path / "none"))
