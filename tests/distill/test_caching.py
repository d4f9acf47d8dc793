"""The cache on disk: what is put comes back to the bit, and what is damaged is not there, never wrong."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lorahub.distill.caching import Cache, key_of, model_hash
from lorahub.errors import LorahubError


def entry(number: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(number)
    return {
        "mean": torch.randn(4, 8, 8, generator=random),
        "half": torch.randn(3, generator=random).to(torch.bfloat16),
        "size": torch.tensor([number, 7]),
    }


def same(one: dict[str, Tensor] | None, other: dict[str, Tensor]) -> bool:
    return one is not None and one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def filled(folder: Path, count: int = 6, *, shard_bytes: int = 2000) -> Cache:
    with Cache(folder, shard_bytes=shard_bytes) as cache:
        for number in range(count):
            cache.put(str(number), entry(number))
    return cache


def test_what_is_put_comes_back_in_this_process_and_the_next(tmp_path: Path) -> None:
    first = filled(tmp_path / "deep" / "cache")
    assert len(shards(first.folder)) == 3  # two entries reach shard_bytes
    for cache in (first, Cache(first.folder)):
        assert len(cache) == 6
        for number in range(6):
            found = cache.get(str(number))
            assert same(found, entry(number))
            assert found is not None
            assert {name: each.dtype for name, each in found.items()} == {
                name: each.dtype for name, each in entry(number).items()
            }
        assert "6" not in cache
        assert cache.get("6") is None


def test_pending_entries_are_readable_and_written_at_the_end(tmp_path: Path) -> None:
    with Cache(tmp_path) as cache:
        cache.put("a", entry(1))
        assert "a" in cache
        assert same(cache.get("a"), entry(1))
        assert not shards(tmp_path)
    assert same(Cache(tmp_path).get("a"), entry(1))
    assert [path.name for path in tmp_path.iterdir()] == [shards(tmp_path)[0].name]  # no temporary is left


def test_an_exception_keeps_what_was_made(tmp_path: Path) -> None:
    def fail() -> None:
        with Cache(tmp_path) as cache:
            cache.put("a", entry(1))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert same(Cache(tmp_path).get("a"), entry(1))


def test_processes_see_each_others_shards_on_refresh(tmp_path: Path) -> None:
    mine, theirs = Cache(tmp_path), Cache(tmp_path)
    theirs.put("a", entry(1))
    theirs.flush()
    assert "a" not in mine
    mine.refresh()
    assert same(mine.get("a"), entry(1))


def test_many_shards_do_not_stay_open(tmp_path: Path) -> None:
    cache = filled(tmp_path, 50, shard_bytes=1)
    assert len(shards(tmp_path)) == 50
    assert all(same(cache.get(str(number)), entry(number)) for number in range(50))
    assert len(cache._open) == 32


@pytest.mark.parametrize("damage", ["cut", "empty", "header", "stranger"])
def test_a_damaged_shard_is_removed_and_the_others_serve(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path)
    victim = shards(tmp_path)[1]
    data = victim.read_bytes()
    changed = {"cut": data[:-100], "empty": b"", "header": b"\xff" * 8 + data[8:], "stranger": b"GIF89a" * 40}
    victim.write_bytes(changed[damage])
    with caplog.at_level(logging.WARNING):
        cache = Cache(tmp_path)
    assert f"{victim} is damaged and removed" in caplog.text
    assert not victim.exists()
    assert len(cache) == 4


def test_a_flipped_bit_is_noticed_on_reading(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path, 2)
    victim = shards(tmp_path)[0]
    data = bytearray(victim.read_bytes())
    data[-9] ^= 16  # in the tensors of one entry
    victim.write_bytes(data)
    cache = Cache(tmp_path)
    with caplog.at_level(logging.WARNING):
        found = [cache.get(str(number)) for number in range(2)]
    assert found.count(None) == 1
    lost = found.index(None)
    assert same(found[1 - lost], entry(1 - lost))
    assert "damaged and made again" in caplog.text
    assert str(lost) not in cache
    cache.put(str(lost), entry(lost))
    cache.flush()
    assert same(cache.get(str(lost)), entry(lost))


def test_a_shard_that_vanishes_is_a_miss(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    cache = Cache(tmp_path)
    shards(tmp_path)[0].unlink()
    assert cache.get("0") is None
    assert "0" not in cache


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(b"not a cache")
    Cache(tmp_path)
    assert (tmp_path / "mine.safetensors").read_bytes() == b"not a cache"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LorahubError, match="cannot make the cache folder"):
        Cache(tmp_path / "file" / "cache")


WRITER = """
import sys, torch
from pathlib import Path
from lorahub.distill.caching import Cache
cache = Cache(Path(sys.argv[1]), shard_bytes=4000)
for number in range(10**6):
    cache.put(str(number), {"mean": torch.full((500,), float(number))})
"""


def test_a_killed_writer_leaves_only_whole_shards(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 300
        while len(shards(tmp_path)) < 20:
            assert writer.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    cache = Cache(tmp_path)
    assert len(cache) >= 40
    for number in range(len(cache)):
        assert same(cache.get(str(number)), {"mean": torch.full((500,), float(number))})


def test_keys_tell_parts_apart() -> None:
    parts = [("a", 1), ("a", "1"), ("a1",), ("a", 1, None), ("a", 1.5), ("a", [1])]
    assert len({key_of(*each) for each in parts}) == len(parts)
    assert key_of("a", {"x": 1, "y": 2}) == key_of("a", {"y": 2, "x": 1})


def test_a_models_hash_is_that_of_its_weights_and_kind() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    before = model_hash(model)
    assert model_hash(model) == before
    assert model_hash(nn.Linear(3, 3)) != before
    assert model_hash(model.half()) != before
    model.float()
    with torch.no_grad():
        model.bias[0] += 1e-3
    assert model_hash(model) != before
