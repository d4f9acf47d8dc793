"""Files as they lie on disk: mapped, at any offset, and left as they are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from lorahub.files.reading import read


def test_tensors_that_are_not_aligned(tmp_path: Path) -> None:
    """Writers need not pad the header, nor order tensors by the size of their numbers."""
    header = {
        "flag": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "up": {"dtype": "F32", "shape": [2, 1], "data_offsets": [1, 9]},
    }
    text = json.dumps(header).encode()
    text += b" " * (len(text) % 2 == 0)
    data = b"\x07" + torch.tensor([[1.5], [-2.0]]).numpy().tobytes()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    content = read(path)
    assert content.tensors["up"].tolist() == [[1.5], [-2.0]]
    assert content.tensors["flag"].tolist() == [7]
    assert content.data_sha256 == hashlib.sha256(data).hexdigest()


def test_writing_into_a_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"up": torch.ones(3, 2)}, path)
    before = path.read_bytes()
    read(path).tensors["up"].zero_()
    assert path.read_bytes() == before
