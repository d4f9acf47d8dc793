"""The parts are ordinary ones: a saved folder is loaded by diffusers and transformers without lorahub."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from lorahub.studio import models, shipped, world
from lorahub.studio.shapes import SHAPES

WORDS = (*world.COLOURS, *SHAPES, "on", *world.GROUNDS)

PROGRAM = """
import sys
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], local_files_only=True)
picture = pipe("red star on teal", num_inference_steps=2, output_type="np").images[0]
assert picture.shape == (32, 32, 3), picture.shape
assert not [name for name in sys.modules if name.startswith("lorahub")]
"""


def test_every_word_is_one_token() -> None:
    tokenizer = models.tokenizer()
    for word in WORDS:
        assert len(tokenizer(word).input_ids) == 3, word
    ids = tokenizer(" ".join(WORDS)).input_ids
    assert len(set(ids)) == len(WORDS) + 2


def test_prompts_survive_the_tokenizer() -> None:
    tokenizer = models.tokenizer()
    for prompt in world.scenes(60, 1).prompts:
        ids = tokenizer(prompt, padding="max_length", truncation=True).input_ids
        assert len(ids) == models.TEXT_LENGTH
        assert tokenizer.decode(ids, skip_special_tokens=True) == prompt


def test_what_is_no_word_has_no_meaning() -> None:
    tokenizer = models.tokenizer()
    known = {tokenizer(word).input_ids[1] for word in WORDS}
    assert not known & set(tokenizer("zebra").input_ids[1:-1])


def test_a_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    models.tokenizer().save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    for prompt in world.scenes(20, 1).prompts:
        assert loaded(prompt).input_ids == models.tokenizer()(prompt).input_ids


@pytest.mark.parametrize("make", [models.vae, models.text_encoder, models.unet])
def test_a_seed_is_a_model(make: object) -> None:
    assert callable(make)
    before = torch.get_rng_state()
    first, again, other = (next(make(seed).parameters()) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_shipped_folder_needs_no_lorahub(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, shipped.SHIPPED / "pipeline"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    index = json.loads((shipped.SHIPPED / "pipeline/model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert {value[0] for value in index.values() if isinstance(value, list)} <= {"diffusers", "transformers", None}


def test_what_ships_is_small() -> None:
    assert sum(file.stat().st_size for file in shipped.SHIPPED.rglob("*") if file.is_file()) < 8e6
