"""Loading maps the weights, and saving holds one layer: what lies in memory does not grow with the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lorahub as lh
from lorahub import bases
from lorahub.files.saving import save

PROBE = """
import json, re, sys, threading, time
from pathlib import Path
import torch
from lorahub.files.loading import load_path
from lorahub.files.saving import save

def held():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\\s+(\\d+)", status)[1]) * 1024

def measured(action):
    peak, done = held(), threading.Event()
    before = peak

    def watch():
        nonlocal peak
        while not done.is_set():
            peak = max(peak, held())
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    result = action()
    done.set()
    thread.join()
    return result, peak - before

torch.set_num_threads(1)
path = Path(sys.argv[1])
torch.randn(64, 64) @ torch.randn(64, 64)  # the libraries' own buffers
load_path(path)
adapter, loading = measured(lambda: load_path(path))
_, copying = measured(lambda: save(adapter, path.with_name("copy.safetensors"), format="diffusers"))
other = load_path(path)
both, summing = measured(lambda: 0.8 * adapter - other)
_, writing = measured(lambda: save(both, path.with_name("both.safetensors"), dtype="fp32"))
print(json.dumps({"load": loading, "copy": copying, "sum": summing, "write": writing}))
"""
MEGABYTE = 2**20


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read from /proc, which this system lacks")
    names = [f"unet.{name}" for name in bases.get("sdxl").components["unet"].layers if name.endswith("ff.net.0.proj")]
    large = [name for name in names if bases.get("sdxl").shape(name) == (10240, 1280)][:40]
    layers = {name: lh.LowRank.of(torch.ones(10240, 64).half(), torch.ones(64, 1280).half()) for name in large}
    path = save(lh.Adapter("sdxl", layers), tmp_path / "large.safetensors").path
    assert path.stat().st_size > 50 * MEGABYTE
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    peaks = json.loads(run.stdout)
    assert peaks["load"] < 5 * MEGABYTE
    assert peaks["copy"] < 25 * MEGABYTE  # reading it back included
    assert peaks["sum"] < 5 * MEGABYTE
    assert peaks["write"] < 70 * MEGABYTE  # a layer of the sum has 6, in float32, and is copied a few times
    assert (tmp_path / "both.safetensors").stat().st_size > 200 * MEGABYTE
