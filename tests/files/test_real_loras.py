"""Published LoRA files through loading, arithmetic and saving: what their README says they hold."""

from __future__ import annotations

from pathlib import Path

import pytest

import lorahub as lh
from lorahub.files.loading import load_path

from . import making


def load(folder: Path, name: str, base: str | None = None) -> lh.Adapter:
    return load_path(folder / f"{name}.safetensors", base=base)


def test_the_two_spellings_of_popart_are_the_same_vector(real_loras: Path) -> None:
    kohya, diffusers = load(real_loras, "sd2-popart.kohya"), load(real_loras, "sd2-popart.diffusers")
    assert (kohya.base, diffusers.base) == ("sd2", "sd2")
    assert kohya.layers.keys() == diffusers.layers.keys()
    assert len(kohya.layers) == 128
    assert making.apart(making.probed(kohya), making.probed(diffusers)) == 0
    assert lh.cosine(kohya, diffusers) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "length"),
    [("sd2-popart.kohya", 8.566), ("sd2-popart.diffusers", 8.566), ("sd2-disney.kohya", 50.352)],
)
def test_norms_are_those_of_the_published_weights(real_loras: Path, name: str, length: float) -> None:
    assert lh.norm(load(real_loras, name)) == pytest.approx(length, rel=2e-4)  # the facts are of the fp32 sources


def test_two_spellings_of_disney_agree_up_to_fp16(real_loras: Path) -> None:
    kohya, original = load(real_loras, "sd15-disney.kohya"), load(real_loras, "sd15-disney.cloneofsimo")
    assert (kohya.base, original.base) == ("sd15", "sd15")
    assert kohya.layers.keys() == original.layers.keys()
    assert len(kohya.layers) == 192
    assert 0 < making.apart(making.probed(original), making.probed(kohya)) < 1e-3
    assert original.embeddings.keys() == {"<s1>", "<s2>"}


@pytest.mark.parametrize("name", ["sd2-popart.kohya", "sd2-disney.kohya", "sd15-disney.kohya"])
def test_kohya_to_diffusers_to_peft_to_kohya_is_the_same_vector(real_loras: Path, name: str, tmp_path: Path) -> None:
    first = load(real_loras, name)
    current = first
    for number, form in enumerate(("diffusers", "peft", "kohya")):
        path = tmp_path / (f"{number}" if form == "peft" else f"{number}.safetensors")
        saved = lh.save(current, path, format=form, dtype="fp16")
        assert saved.error == 0  # fp16 in, and scales are powers of two
        current = load_path(saved.path)
    assert making.apart(making.probed(first), making.probed(current)) == 0


@pytest.mark.parametrize("name", ["sd2-popart.kohya", "sd2-disney.kohya", "sd15-disney.cloneofsimo"])
def test_an_adapter_minus_itself_is_zero(real_loras: Path, name: str) -> None:
    one, again = load(real_loras, name), load(real_loras, name)
    assert lh.norm(one - one) == 0
    assert lh.norm(one - again) < 1e-6 * lh.norm(one)  # the same numbers, loaded twice


def test_spellings_mix_in_a_combination(real_loras: Path, tmp_path: Path) -> None:
    popart, disney = load(real_loras, "sd2-popart.diffusers"), load(real_loras, "sd2-disney.kohya")
    both = 0.8 * popart + 0.3 * disney
    expected = making.mixture((0.8, making.dense(popart)), (0.3, making.dense(disney)))
    assert making.apart(expected, making.dense(both)) < 1e-12
    reduced = lh.truncate(both, lh.fixed(4))
    assert {layer.rank for layer in reduced.layers.values()} == {4}
    saved = lh.save(reduced, tmp_path / "both.safetensors", dtype="fp32")
    error = making.apart(expected, making.dense(load_path(saved.path)))
    assert error == pytest.approx(reduced.relative_error, rel=1e-4)
    assert 0.001 < error < 0.5


def test_embeddings_travel_in_kohya_files(real_loras: Path, tmp_path: Path) -> None:
    original = load(real_loras, "sd15-disney.cloneofsimo")
    saved = lh.save(original, tmp_path / "a.safetensors", format="kohya", dtype="fp32")
    assert "bundle_emb.<s1>.string_to_param.*" in making.header(saved.path)
    again = load_path(saved.path)
    assert {name: vectors.tolist() for name, vectors in again.embeddings.items()} == {
        name: vectors.tolist() for name, vectors in original.embeddings.items()
    }
