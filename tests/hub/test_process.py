"""The installed script and the Hub, set up by environment variables as people do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.hub import faults
from tests.hub.server import Hub

SCRIPT = Path(sys.executable).with_name("lorahub")
WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "LORAHUB_HOME": str(tmp_path / "none")}
    off = ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_IMPLICIT_TOKEN", "HF_HUB_DISABLE_XET")
    return {**os.environ, **own, **dict.fromkeys(off, "1")}


def test_combine_from_the_hub(hub: Hub, lcm: bytes, environment: dict[str, str]) -> None:
    hub.repo("user/lcm", {WEIGHTS: lcm})
    arguments = ["combine", "0.5*user/lcm", "-o", "half.safetensors"]
    done = subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("half.safetensors: sd15, kohya, fp16")


def test_an_interrupted_download_leaves_nothing(
    hub: Hub, lcm: bytes, environment: dict[str, str], tmp_path: Path
) -> None:
    hub.repo("user/lcm", {WEIGHTS: lcm})
    hub.fail("GET /user/lcm/resolve", faults.delayed(3))
    process = subprocess.Popen(
        [SCRIPT, "inspect", "user/lcm"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not any(asked.path.endswith(WEIGHTS) and asked.method == "GET" for asked in hub.requests):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (130, b"", b"Interrupted.\n")
    assert [path for path in (tmp_path / "home").rglob("blobs/*") if path.is_file()] == []
