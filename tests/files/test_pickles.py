"""Pickles: refused unless allowed, and then only plain tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lorahub import bases
from lorahub.errors import FileFormatError
from lorahub.files.building import from_state_dict
from lorahub.files.loading import load_path

from . import making

LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt", ".pth"])
def test_a_pickle_is_refused_unless_it_is_allowed(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    given = making.kohya(making.trained(bases.get("sd15"), [LAYER], seed=1))
    torch.save(given, path)
    with pytest.raises(
        FileFormatError, match="Python pickle, which can run code when read: convert it, or pass --allow"
    ):
        load_path(path, base="sd15")
    found = load_path(path, base="sd15", allow_pickle=True)
    assert making.apart(making.dense(from_state_dict(given, base="sd15")), making.dense(found)) == 0
    torch.save({"state_dict": given, "epoch": 3}, path)
    assert load_path(path, base="sd15", allow_pickle=True).layers.keys() == found.layers.keys()


class Boom:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("/tmp/lorahub-pickle-was-run").touch, ())


def test_a_pickle_that_wants_to_run_code_is_refused_even_when_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": Boom()}, path)
    with pytest.raises(FileFormatError, match="cannot be read as a pickle of plain tensors") as caught:
        load_path(path, allow_pickle=True)
    assert "\n" not in str(caught.value)
    assert not Path("/tmp/lorahub-pickle-was-run").exists()


@pytest.mark.parametrize("content", [[torch.ones(2)], {"a": 1}, torch.ones(2)])
def test_a_pickle_of_something_else_is_refused(content: object, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(content, path)
    with pytest.raises(FileFormatError, match="should hold a dictionary of tensors, holds"):
        load_path(path, allow_pickle=True)


def test_a_damaged_pickle_is_one_line(tmp_path: Path) -> None:
    for number, data in enumerate((b"", b"\x80\x02garbage", b"PK\x03\x04" + b"\0" * 40)):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(data)
        with pytest.raises(FileFormatError) as caught:
            load_path(path, allow_pickle=True)
        assert "\n" not in str(caught.value)
