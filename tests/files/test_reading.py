"""Files as they lie on disk: mapped, at any offset, and left as they are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lorahub import header
from lorahub.errors import FileFormatError
from lorahub.files.reading import read
from tests.test_header import DTYPES


def test_tensors_that_are_not_aligned(tmp_path: Path) -> None:
    """Writers need not pad the header, nor order tensors by the size of their numbers, nor list them in order."""
    described = {
        "up": {"dtype": "F32", "shape": [2, 1], "data_offsets": [1, 9]},
        "flag": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
    }
    text = json.dumps(described).encode()
    text += b" " * (len(text) % 2 == 0)
    data = b"\x07" + torch.tensor([[1.5], [-2.0]]).numpy().tobytes()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    content = read(path)
    assert content.tensors["up"].tolist() == [[1.5], [-2.0]]
    assert content.tensors["flag"].tolist() == [7]
    assert content.data_sha256 == hashlib.sha256(data).hexdigest()


def test_the_hash_is_that_of_the_data_region(tmp_path: Path) -> None:
    """Whatever lies in it: every dtype, nothing at all, single numbers."""
    numbers = torch.randint(0, 2, (4, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tensors = {name: numbers.clone().view(dtype) for name, dtype in DTYPES.items()}
    tensors |= {"none": torch.ones(0, 3), "one": torch.tensor(4.0).half()}
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, metadata={"some": "thing"})
    assert read(path).data_sha256 == header.data_sha256(path, header.read(path))


def test_writing_into_a_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"up": torch.ones(3, 2)}, path)
    before = path.read_bytes()
    read(path).tensors["up"].zero_()
    assert path.read_bytes() == before


def test_a_file_that_is_exchanged_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, described = tmp_path / "a.safetensors", header.read
    save_file({"a": torch.ones(3)}, path)

    def read_and_exchange(path: Path) -> header.Header:
        found = described(path)
        save_file({"b": torch.ones(3)}, path)
        return found

    monkeypatch.setattr(header, "read", read_and_exchange)
    with pytest.raises(FileFormatError, match=r"a\.safetensors changed while it was read"):
        read(path)
