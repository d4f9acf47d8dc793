"""Files as they lie on disk: mapped, at any offset, in any dtype that safetensors has."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorahub.files.reading import read

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip


def same(path: Path) -> None:
    found, expected = read(path).tensors, load_file(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name].flatten().view(torch.uint8), tensor.flatten().view(torch.uint8))


@pytest.mark.parametrize("extra", [(), (torch.float8_e4m3fn,)])
def test_every_dtype_reads_as_safetensors_reads_it(extra: tuple[torch.dtype, ...], tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.arange(6).reshape(2, 3).to(dtype) for i, dtype in enumerate((*DTYPES, *extra))}
    save_file({**tensors, "empty": torch.zeros(0, 4), "alpha": torch.tensor(4.0)}, tmp_path / "a.safetensors")
    same(tmp_path / "a.safetensors")


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
