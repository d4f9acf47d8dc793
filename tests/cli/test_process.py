"""The installed script as a process among others: signals, pipes, terminals, encodings. Nothing here can run in-process."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from lorahub import bases
from tests.cli import adapters
from tests.cli.conftest import SCRIPT, script


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every attention layer of SD 1.5 at rank 64: a second or two of work for the commands that compute."""
    path = tmp_path_factory.mktemp("big") / "big.safetensors"
    noise = np.random.default_rng(0).standard_normal(1280 * 64, "float32").astype("float16")
    tensors = {}
    for module, shape in bases.get("sd15").components["unet"].layers.items():
        if ".attn" in module:
            out, columns = shape
            tensors[f"unet.{module}.lora_A.weight"] = noise[: 64 * columns].reshape(64, columns)
            tensors[f"unet.{module}.lora_B.weight"] = noise[: 64 * out].reshape(out, 64)
    return adapters.write(path, tensors)


def start(*arguments: str | Path, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([SCRIPT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload, no-any-return]


def wait_for_file(pattern: str, folder: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, b"Interrupted.\n"), (signal.SIGTERM, 143, b"")],
    ids=["SIGINT", "SIGTERM"],
)
def test_a_signal_while_writing_leaves_nothing_behind(
    tmp_path: Path, big: Path, number: int, code: int, said: bytes
) -> None:
    process = start("combine", f"2*'{big}'", "-o", "out.safetensors", cwd=tmp_path)
    wait_for_file(".out.safetensors.*.tmp", tmp_path, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=180)
    assert (process.returncode, out, err) == (code, b"", said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3])
def test_an_interrupt_while_torch_is_imported(tmp_path: Path, big: Path, delay: float) -> None:
    """Libraries catch exceptions while they import one another, and native code turns them into its own."""
    process = start("resize", big, "-o", "out", "--max-size", "1MB", "--format", "peft", cwd=tmp_path)
    maps = Path(f"/proc/{process.pid}/maps")
    if not maps.exists():
        process.kill()
        process.communicate()
        pytest.skip("without /proc nobody can see when torch is being imported")
    deadline = time.monotonic() + 180
    while "libtorch" not in maps.read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=180)
    assert (process.returncode, out, err) == (130, b"", b"Interrupted.\n")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_is_no_error(folder: Path) -> None:
    for arguments in ("bases", "inspect style.safetensors --metadata", "formats --json", "--help"):
        piped = f"set -o pipefail; '{SCRIPT}' {arguments} | head -1 | head -0"
        done = subprocess.run(["bash", "-c", piped], capture_output=True, timeout=180)
        assert done.stderr == b""


def test_a_closed_pipe_is_silent(folder: Path) -> None:
    with start("inspect", "style.safetensors") as process:
        assert process.stdout
        process.stdout.close()
        assert process.stderr
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_closed_standard_streams(folder: Path) -> None:
    closed = f"'{SCRIPT}' convert style.safetensors -o x.safetensors --to kohya >&- 2>&-"
    assert subprocess.run(["bash", "-c", closed], timeout=180).returncode == 0
    assert (folder / "x.safetensors").is_file()


def on_terminal(*arguments: str | Path) -> tuple[int, bytes, bytes]:
    """(exit code, standard output, standard error), with standard error on a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([SCRIPT, *arguments], stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # the other end was closed: so it is on Linux
            break
        if not chunk:
            break
        shown += chunk
    os.close(ours)
    out, _ = process.communicate(timeout=180)
    return process.returncode, out, shown


def test_progress_on_a_terminal_goes_to_standard_error_and_is_wiped(folder: Path, big: Path) -> None:
    code, out, shown = on_terminal("resize", big, "-o", "x.safetensors", "--energy", "0.5", "--json")
    assert code == 0
    assert json.loads(out)["command"] == "resize"
    assert b"resizing: " in shown
    assert shown.endswith(b"\r\x1b[K")


def test_no_progress_elsewhere(folder: Path, big: Path) -> None:
    done = script("compare", big, big)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\r" not in done.stdout


ENCODINGS = {
    "LANG=C": {"LANG": "C", "LC_ALL": "C"},
    "POSIX without UTF-8 mode": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "strict ASCII": {"PYTHONIOENCODING": "ascii:strict"},
    "Latin-1": {"PYTHONIOENCODING": "latin-1:strict"},
    "Windows": {"PYTHONIOENCODING": "cp1252:strict"},
    "strict UTF-8": {"PYTHONIOENCODING": "utf-8:strict"},
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_takes_the_output(folder: Path, name: str) -> None:
    env = ENCODINGS[name]
    made = script("convert", "style.safetensors", "-o", "ünïcode-Δ.safetensors", "--to", "kohya", env=env)
    assert (made.returncode, made.stderr) == (0, b"")
    assert b"read back and compared: " in made.stdout
    assert "ΔW".encode() in made.stdout or b"\\u0394W" in made.stdout
    assert len([*folder.iterdir()]) == 3
    helped = script("convert", "--help", env=env)
    assert (helped.returncode, helped.stderr) == (0, b"")


@pytest.mark.parametrize("name", ENCODINGS)
def test_file_names_that_are_no_text(folder: Path, name: str) -> None:
    odd = b"caf\xe9 \xff.safetensors"
    Path("style.safetensors").rename(os.fsdecode(odd))
    for flag, decoded in (([], False), (["--json"], True)):
        done = script("inspect", odd, *flag, env=ENCODINGS[name])
        assert (done.returncode, done.stderr) == (0, b"")
        if decoded:
            assert json.loads(done.stdout)["files"][0]["size"] == Path(os.fsdecode(odd)).stat().st_size
        else:
            assert b".safetensors: kohya, " in done.stdout
    missing = script("inspect", b"\xff.safetensors", env=ENCODINGS[name])
    assert missing.returncode == 4
    assert missing.stderr.startswith(b"Error: no adapter '")
    assert missing.stderr.count(b"\n") == 1


def test_json_of_a_name_that_is_no_text_leads_back_to_the_file(folder: Path) -> None:
    odd = b"caf\xe9.safetensors"
    done = script("convert", "style.safetensors", "-o", odd, "--to", "kohya", "--json")
    assert done.returncode == 0, done.stderr
    assert os.fsencode(json.loads(done.stdout)["output"]) == odd
    assert (folder / os.fsdecode(odd)).is_file()
    again = script("combine", b"0.5*'" + odd + b"'", "-o", "half.safetensors")
    assert again.returncode == 0, again.stderr
