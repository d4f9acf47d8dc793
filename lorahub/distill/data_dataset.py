"""A Hugging Face dataset, from the Hub or from disk. The rule: images stay the bytes that were stored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorahub.distill.data_pictures import CAPTION_NAMES, Picture
from lorahub.errors import NetworkError, NotFoundError, UsageError

if TYPE_CHECKING:
    from datasets import Dataset


class HubDataset:
    """One split of a dataset: a Hub id, a folder that `datasets` can load, or one that `save_to_disk` wrote."""

    def __init__(
        self,
        name: str,
        *,
        split: str = "train",
        revision: str | None = None,
        image_column: str | None = None,
        caption_column: str | None = None,
        prompt: str | None = None,
    ) -> None:
        """Columns are found by type and name unless given; `prompt` stands in where there is no caption column.

        Raises NotFoundError, NetworkError, or UsageError when the columns are not there.
        """
        self._name = f"{name}[{split}]"
        rows = _load(name, split, revision)
        self._image = _image_column(rows, image_column, self._name)
        self._caption = _caption_column(rows, caption_column, prompt, self._name)
        self._prompt = prompt
        from datasets import Image

        self._rows = rows.cast_column(self._image, Image(decode=False))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Picture:
        row: dict[str, Any] = self._rows[index]
        image, name = row[self._image], f"{self._name} row {index}"
        if image is None:
            raise UsageError(f"{name} has no image: filter such rows out first")
        data = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        return Picture(name, data, self._text(row, name))

    def _text(self, row: dict[str, Any], name: str) -> str:
        caption = self._prompt if self._caption is None else row[self._caption]
        if caption is None:
            raise UsageError(f"{name} has no {self._caption}: filter such rows out first")
        return str(caption)


def _load(name: str, split: str, revision: str | None) -> Dataset:
    try:
        import datasets
    except ImportError:
        raise UsageError("reading a dataset needs the package datasets: pip install 'lorahub-toolkit[train]'") from None
    try:
        if (Path(name) / "state.json").is_file():
            return datasets.load_from_disk(name)
        if (Path(name) / "dataset_dict.json").is_file():
            return datasets.load_from_disk(name)[split]
        return datasets.load_dataset(name, split=split, revision=revision)
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError, KeyError) as error:
        raise NotFoundError(f"no dataset {name} with a split {split}: {error}") from None
    except ValueError as error:
        raise UsageError(f"cannot load the dataset {name}: {error}") from None
    except ConnectionError as error:
        raise NetworkError(f"cannot load the dataset {name}: {error}") from None


def _image_column(rows: Dataset, wanted: str | None, name: str) -> str:
    from datasets import Image

    found = [column for column, feature in rows.features.items() if isinstance(feature, Image)]
    if wanted is None and len(found) == 1:
        return str(found[0])
    if wanted in found:
        return str(wanted)
    asked = f"no image column {wanted!r}" if wanted else "one image column was expected: name it with image_column"
    raise UsageError(f"{name}: {asked}; images are in {', '.join(found) or 'none'} of {', '.join(rows.column_names)}")


def _caption_column(rows: Dataset, wanted: str | None, prompt: str | None, name: str) -> str | None:
    from datasets import Value

    texts = [column for column, kind in rows.features.items() if kind in (Value("string"), Value("large_string"))]
    for column in (wanted,) if wanted else CAPTION_NAMES:
        if column in texts:
            return column
    if wanted is None and prompt is not None:
        return None
    asked = (
        f"no text column {wanted!r}" if wanted else "no caption column: name it with caption_column, or give `prompt`"
    )
    raise UsageError(f"{name}: {asked}; texts are in {', '.join(texts) or 'none'} of {', '.join(rows.column_names)}")
