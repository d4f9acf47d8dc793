"""What saving refuses, and that a refusal leaves everything as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lorahub as lh
from lorahub.errors import BaseMismatchError, ConflictError, NotFoundError, UsageError
from lorahub.files.loading import load_path
from lorahub.files.saving import save

from . import making
from .styles import listing, style


def test_an_existing_file_is_overwritten_only_by_force(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("precious")
    with pytest.raises(ConflictError, match="exists already: choose another name, or overwrite it with --force"):
        save(style(), path)
    assert path.read_text() == "precious"
    save(style(), path, force=True)
    assert listing(tmp_path) == ["a.safetensors"]
    assert load_path(path).base == "sd15"


def test_a_file_may_be_overwritten_by_what_is_made_of_it(tmp_path: Path) -> None:
    path = save(style(), tmp_path / "a.safetensors", dtype="fp32").path
    old = load_path(path)
    expected = making.dense(2 * old)
    save(2 * old, path, dtype="fp32", force=True)
    assert making.apart(expected, making.dense(load_path(path))) < 1e-6


def test_a_folder_is_overwritten_by_force_and_only_if_it_holds_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    save(style(), path)
    with pytest.raises(ConflictError, match="exists already"):
        save(style(), path)
    save(lh.weighted(style(), {"^text_encoder": 0}), path, force=True)
    assert listing(tmp_path) == ["a", "a/adapter_config.json", "a/adapter_model.safetensors"]
    (path / "thesis.tex").write_text("precious")
    with pytest.raises(ConflictError, match=r"also holds thesis\.tex"):
        save(style(), path, force=True)
    with pytest.raises(ConflictError, match="is a folder: a file does not overwrite it"):
        save(style(), path, format="kohya", force=True)
    assert listing(tmp_path) == ["a", "a/adapter_config.json", "a/adapter_model.safetensors", "a/thesis.tex"]


def test_a_zero_adapter_is_not_saved(tmp_path: Path) -> None:
    plain = style()
    with pytest.raises(UsageError, match="is zero: there is nothing to save"):
        save(plain - plain, tmp_path / "a.safetensors")
    assert listing(tmp_path) == []


def test_wishes_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    for wish, message in (
        ({"dtype": "fp8"}, "no such dtype: 'fp8'; expected one of fp32, fp16, bf16"),
        ({"format": "omi"}, "cannot write the format 'omi': expected one of kohya, diffusers, peft"),
        ({"drop": ["alphas"]}, "cannot drop 'alphas': expected offsets or embeddings"),
    ):
        with pytest.raises(UsageError, match=message):
            save(style(), tmp_path / "a.safetensors", **wish)  # type: ignore[arg-type]
    assert listing(tmp_path) == []


def test_layers_that_the_base_lacks_are_refused(tmp_path: Path) -> None:
    strange = lh.Adapter("sd15", {"unet.nothing": lh.LowRank.of(torch.ones(4, 1), torch.ones(1, 4))})
    for form in ("kohya", "diffusers", "peft"):
        with pytest.raises(BaseMismatchError, match=r"sd15 has no layer 'unet\.nothing'"):
            save(strange, tmp_path / "a", format=form)


def test_a_base_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no base model is called 'sd16'"):
        save(lh.Adapter("sd16", style().layers), tmp_path / "a.safetensors")
