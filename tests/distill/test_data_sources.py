"""Sources of batches: pure functions of the number, the same with a cache and without, after a kill, and honest about sizes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lorahub.distill.conditioning import Batch, encode_prompts
from lorahub.distill.data import open_source
from lorahub.distill.data_sources import Order, seeded
from lorahub.errors import FileFormatError, NotFoundError, UsageError, VerificationError
from tests.distill import tiny
from tests.distill.data_files import encoded, folder, noise, shard

CAPTIONS = {"a.png": "red star", "b.png": "blue circle", "c/d.png": "red star", "e.png": "green star on teal"}


@pytest.fixture(scope="module")
def sd() -> Any:
    return tiny.sd()


@pytest.fixture(scope="module")
def sdxl() -> Any:
    return tiny.sdxl()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("pictures"), CAPTIONS)


def tensors(batch: Batch) -> list[Tensor]:
    c = batch.conditioning
    return [each for each in (batch.latents, c.prompt_embeds, c.pooled, c.time_ids) if each is not None]


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


def shards(cache: Path) -> set[str]:
    return {path.name for path in cache.glob("*.safetensors")}


def test_every_sample_comes_once_an_epoch_in_another_order() -> None:
    order = Order(count=10, batch_size=4, seed=3)
    rows = [row for number in range(5) for row in order.at(number)]
    assert [position for position, _ in rows] == list(range(20))
    first, second = [sample for _, sample in rows[:10]], [sample for _, sample in rows[10:]]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert [sample for _, sample in Order(10, 4, seed=4).at(0)] != first[:4]
    assert Counter(sample for _, sample in Order(3, 30).at(7)) == {0: 10, 1: 10, 2: 10}


def test_a_batch_is_a_pure_function_of_seed_and_number(sd: Any, pictures: Path, tmp_path: Path) -> None:
    table = {"folder": str(pictures), "flip": True}
    plain = open_source(table, sd, batch_size=3, seed=1)
    kept = open_source({**table, "cache": str(tmp_path / "cache")}, sd, batch_size=3, seed=1)
    there = [plain.at(number) for number in range(4)]
    torch.manual_seed(99)
    back = [kept.at(number) for number in reversed(range(4))][::-1]
    assert all(same(a, b) for a, b in zip(there, back, strict=True))
    assert there[0].latents.shape == (3, 4, 16, 16)
    assert there[0].latents.dtype == torch.float32
    assert not same(there[0], open_source(table, sd, batch_size=3, seed=2).at(0))
    assert len(plain) == len(kept) == 4


def test_latents_are_drawn_anew_from_the_moments_and_scaled(sd: Any, tmp_path: Path) -> None:
    folder(tmp_path, {"a.png": "red star"})
    source = open_source({"folder": str(tmp_path), "cache": str(tmp_path / "cache")}, sd, batch_size=400)
    latents = source.at(0).latents
    image = torch.from_numpy(np.array(_square(tmp_path / "a.png"))).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        moments = sd.vae.encode(image).latent_dist
    apart = (latents - 0.5 * moments.mean) / (0.5 * moments.std)
    assert abs(float(apart.mean())) < 0.01
    assert abs(float(apart.std()) - 1) < 0.01
    assert apart.std(0).min() > 0.8  # every element varies from sample to sample
    assert not torch.equal(source.at(1).latents, latents)


def _square(path: Path) -> Any:
    image = Image.open(path)  # 40 x 36
    return image.resize((36, 32), Image.Resampling.LANCZOS).crop((2, 0, 34, 32))


def test_flips_are_mirror_images_about_half_of_the_time(sd: Any, tmp_path: Path) -> None:
    folder(tmp_path, {"a.png": "red star"})
    cache = str(tmp_path / "cache")
    plain = open_source({"folder": str(tmp_path), "cache": cache}, sd, batch_size=64)
    flipped = open_source({"folder": str(tmp_path), "cache": cache, "flip": True}, sd, batch_size=64)
    straight = (plain.at(0).latents == flipped.at(0).latents).flatten(1).all(1)
    assert 16 < int(straight.sum()) < 48
    (tmp_path / "m").mkdir()
    _square(tmp_path / "a.png").transpose(0).save(tmp_path / "m" / "a.png")
    mirrored = open_source({"folder": str(tmp_path / "m"), "cache": cache, "prompt": "x"}, sd, batch_size=64)
    expected = torch.where(straight[:, None, None, None], plain.at(0).latents, mirrored.at(0).latents)
    assert torch.equal(flipped.at(0).latents, expected)


def test_prompts_and_sizes_belong_to_their_pictures(sdxl: Any, tmp_path: Path) -> None:
    sizes = {"red": (64, 40), "blue": (20, 30), "green": (33, 32)}
    for word, (width, height) in sizes.items():
        (tmp_path / f"{word}.png").write_bytes(encoded(noise(1, width, height)))
        (tmp_path / f"{word}.txt").write_text(word)
    ids = {"red": (40, 64, 0, 9, 32, 32), "blue": (30, 20, 8, 0, 32, 32), "green": (32, 33, 0, 0, 32, 32)}
    source = open_source({"folder": str(tmp_path), "cache": str(tmp_path / "cache")}, sdxl, batch_size=6)
    condition = source.at(0).conditioning
    assert condition.time_ids is not None
    assert condition.pooled is not None
    words = {name: encode_prompts(sdxl, [name]) for name in ids}
    for row in range(6):
        name = next(name for name, size in ids.items() if tuple(condition.time_ids[row].tolist()) == size)
        assert torch.equal(condition.prompt_embeds[row], words[name].prompt_embeds[0])
        pooled = words[name].pooled
        assert pooled is not None
        assert torch.equal(condition.pooled[row], pooled[0])


def test_shards_give_what_the_folder_gives(sd: Any, pictures: Path, tmp_path: Path) -> None:
    files = [
        (f"{number}.{kind}", (pictures / name).with_suffix(f".{kind}").read_bytes())
        for number, name in enumerate(sorted(CAPTIONS, key=Path))
        for kind in ("png", "txt")
    ]
    packed = open_source({"shards": str(shard(tmp_path / "s.tar", files))}, sd, batch_size=5)
    assert same(packed.at(1), open_source({"folder": str(pictures)}, sd, batch_size=5).at(1))


def test_a_cache_is_filled_once_with_progress(sd: Any, pictures: Path, tmp_path: Path) -> None:
    table = {"folder": str(pictures), "cache": str(tmp_path)}
    seen: list[tuple[int, int, str]] = []
    open_source(table, sd, batch_size=2, progress=lambda *each: seen.append(each))
    assert seen == [(done, 4, "pictures") for done in range(1, 5)]
    before = shards(tmp_path)
    assert len(before) == 1
    source = open_source(table, sd, batch_size=2)
    assert shards(tmp_path) == before
    vae, encoder = sd.vae, sd.text_encoder
    try:
        sd.vae.encode = None  # whoever calls it fails
        source.at(0)
    finally:
        del vae.encode
    assert sd.text_encoder is encoder


def test_what_changes_is_made_again(pictures: Path, tmp_path: Path) -> None:
    pipeline = tiny.sd()
    cache = tmp_path / "cache"
    own = folder(tmp_path / "own", CAPTIONS)
    table = {"folder": str(own), "cache": str(cache)}

    def grows(**more: object) -> bool:
        """Whether opening wrote to the cache; what it gives is right in either case."""
        before = shards(cache)
        kept = open_source({**table, **more}, pipeline, batch_size=4).at(0)
        assert same(kept, open_source({**table, **more, "cache": ""}, pipeline, batch_size=4).at(0))
        return shards(cache) != before

    assert grows()
    assert not grows()
    (own / "a.png").write_bytes(encoded(noise(77)))
    assert grows()
    (own / "a.txt").write_text("blue star")
    assert grows()
    assert grows(resolution=16)
    assert grows(flip=True)
    with torch.no_grad():
        pipeline.vae.quant_conv.bias += 0.1
    assert grows()
    with torch.no_grad():
        pipeline.text_encoder.get_input_embeddings().weight[55] += 0.1
    assert grows()
    assert not grows()


def test_a_damaged_entry_is_made_again_to_the_bit(sd: Any, pictures: Path, tmp_path: Path) -> None:
    table = {"folder": str(pictures), "cache": str(tmp_path)}
    expected = [open_source(table, sd, batch_size=4).at(number) for number in range(2)]
    (victim,) = tmp_path.glob("*.safetensors")
    data = bytearray(victim.read_bytes())
    for place in range(len(data) // 2, len(data), 500):
        data[place] ^= 255
    victim.write_bytes(data)
    source = open_source(table, sd, batch_size=4)
    assert all(same(source.at(number), batch) for number, batch in enumerate(expected))
    victim.write_bytes(data[:1000])
    source = open_source(table, sd, batch_size=4)
    assert not victim.exists()
    assert all(same(source.at(number), batch) for number, batch in enumerate(expected))


FILL = """
import sys
from tests.distill import tiny
from lorahub.distill import caching
from lorahub.distill.data import open_source
caching._SHARD_ENTRIES = 2
pipeline = tiny.sd()
def progress(done, total, unit):
    print(done, flush=True)
open_source({"folder": sys.argv[1], "cache": sys.argv[2]}, pipeline, batch_size=2, progress=progress)
"""


def test_a_killed_fill_is_taken_up(sd: Any, tmp_path: Path) -> None:
    many = folder(tmp_path / "many", {f"{number:03d}.png": "red star" for number in range(40)})
    table = {"folder": str(many), "cache": str(tmp_path / "cache")}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.fspath(Path(__file__).parents[2])}
    filling = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FILL, table["folder"], table["cache"]],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert filling.stdout is not None
    try:
        while int(filling.stdout.readline()) < 12:
            pass
    finally:
        filling.send_signal(signal.SIGKILL)
        filling.wait()
        filling.stdout.close()
    left = shards(tmp_path / "cache")
    assert 5 <= len(left) < 20
    source = open_source(table, sd, batch_size=40)
    assert shards(tmp_path / "cache") > left
    assert same(source.at(0), open_source({"folder": str(many)}, sd, batch_size=40).at(0))


def test_prompts_alone_are_drawn_by_the_pipeline_itself(sdxl: Any, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("red star\n\n  blue circle \n")
    table = {"prompts": str(tmp_path / "prompts.txt"), "cache": str(tmp_path / "cache"), "draw_steps": 3}
    seen: list[int] = []
    source = open_source(
        {**table, "draws_per_prompt": 2}, sdxl, batch_size=4, seed=5, progress=lambda done, *_: seen.append(done)
    )
    assert seen == [1, 2, 3, 4]
    assert len(source) == 4
    batch = source.at(0)
    assert len(batch.latents.flatten(1).unique(dim=0)) == 4  # two of each prompt, all different
    embeds = batch.conditioning.prompt_embeds
    assert len(embeds.flatten(1).unique(dim=0)) == 2
    assert batch.conditioning.time_ids is not None
    assert batch.conditioning.time_ids.unique(dim=0).tolist() == [[32, 32, 0, 0, 32, 32]]
    epochs = [source.at(number).latents.flatten(1).sort(0).values for number in (0, 9)]
    assert torch.equal(*epochs)
    again = open_source({**table, "draws_per_prompt": 2}, sdxl, batch_size=4, seed=5)
    assert same(again.at(2), source.at(2))
    # The teacher's own guided drawing, from the same noise as the source takes.
    drawn = sdxl(
        "blue circle",
        height=32,
        width=32,
        num_inference_steps=3,
        guidance_scale=7.5,
        generator=seeded(5, "draw", "blue circle", 1),
        output_type="latent",
    ).images
    assert any(torch.equal(drawn[0], latents) for latents in batch.latents)


def test_drawings_that_vanish_during_training_are_not_drawn_by_the_student(sd: Any, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("red star\n")
    table = {"prompts": str(tmp_path / "prompts.txt"), "draw_steps": 1}
    with pytest.raises(UsageError, match="say where with `cache`"):
        open_source(table, sd, batch_size=1)
    source = open_source({**table, "cache": str(tmp_path / "cache")}, sd, batch_size=1)
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    with pytest.raises(VerificationError, match="a drawing is gone"):
        source.at(0)


def test_a_broken_image_is_named_and_what_was_made_is_kept(sd: Any, tmp_path: Path) -> None:
    own = folder(tmp_path / "own", CAPTIONS)
    (own / "e.png").write_bytes((own / "e.png").read_bytes()[:200])
    table = {"folder": str(own), "cache": str(tmp_path / "cache")}
    with pytest.raises(FileFormatError, match=f"{own}/e.png is a damaged image"):
        open_source(table, sd, batch_size=2)
    assert len(shards(tmp_path / "cache")) == 1
    with pytest.raises(FileFormatError, match=r"e.png"):
        open_source({"folder": str(own)}, sd, batch_size=4).at(0)


def test_a_vae_that_answers_nan_is_not_believed(pictures: Path) -> None:
    pipeline = tiny.sd()
    with torch.no_grad():
        pipeline.vae.quant_conv.bias += float("nan")
    with pytest.raises(VerificationError, match=r"the VAE makes NaN or Inf of .*png: load the pipeline in float32"):
        open_source({"folder": str(pictures)}, pipeline, batch_size=1).at(0)


def test_a_vae_that_overflows_in_fp16_encodes_in_fp32(pictures: Path) -> None:
    pipeline = tiny.sd()
    expected = open_source({"folder": str(pictures)}, pipeline, batch_size=4).at(0).latents
    pipeline.vae.half()
    assert pipeline.vae.config.force_upcast
    source = open_source({"folder": str(pictures)}, pipeline, batch_size=4)
    assert (source.at(0).latents - expected).abs().max() < 0.05
    assert pipeline.vae.dtype == torch.float16


def test_settings_are_checked(sd: Any, pictures: Path, tmp_path: Path) -> None:
    for table, message in (
        ({}, "expected one of folder, dataset, shards, prompts, got none"),
        ({"folder": "a", "prompts": "b"}, "got folder and prompts"),
        ({"foldr": "a"}, "foldr: no such setting; did you mean folder"),
        ({"folder": 3}, "folder: expected text, got 3"),
        ({"folder": "a", "flip": "yes"}, "flip: expected true or false"),
        ({"prompts": "a", "draw_steps": 0}, "draw_steps: expected a whole number from 1 to 1000, got 0"),
        ({"prompts": "a", "flip": True}, "flip: drawings"),
        ({"folder": str(pictures), "resolution": 31}, "resolution: expected a multiple of 2"),
    ):
        with pytest.raises(UsageError, match=message):
            open_source(table, sd, batch_size=1)
    with pytest.raises(NotFoundError, match="no such file of prompts"):
        open_source({"prompts": str(tmp_path / "none.txt"), "cache": str(tmp_path)}, sd, batch_size=1)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UsageError, match="holds no prompt"):
        open_source({"prompts": str(tmp_path / "empty.txt"), "cache": str(tmp_path)}, sd, batch_size=1)
    headless = tiny.sd()
    headless.vae = None
    with pytest.raises(UsageError, match="the pipeline has no vae: load it whole"):
        open_source({"folder": str(pictures)}, headless, batch_size=1)
