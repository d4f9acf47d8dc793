"""What baking refuses, and that a refusal, a crash or a full disk leaves nothing behind."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lorahub as lh
from lorahub.baking import checking, operands
from lorahub.baking.planning import plan
from lorahub.baking.verifying import verify
from lorahub.bases.model import Base
from lorahub.checkpoints import open_checkpoint
from lorahub.errors import (
    BaseMismatchError,
    ConflictError,
    FileFormatError,
    LorahubError,
    PartialError,
    UsageError,
    VerificationError,
)
from tests.baking import making
from tests.checkpoints.making import ldm


@pytest.fixture(scope="module")
def sd15() -> Base:
    return making.base("sd15")


@pytest.fixture
def checkpoint(sd15: Base, tmp_path: Path) -> Path:
    save_file(ldm(making.parts("sd15")["unet"], sd15), tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


@pytest.fixture
def style(sd15: Base) -> lh.Adapter:
    return making.adapter(sd15, components=("unet",))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_text_encoder_that_is_not_there(sd15: Base, checkpoint: Path, tmp_path: Path) -> None:
    value = making.adapter(sd15)
    with pytest.raises(BaseMismatchError, match=r"base has no text_encoder, .*--drop text-encoder"):
        lh.bake(value, checkpoint, tmp_path / "out.safetensors", base=sd15)
    done = lh.bake(value, checkpoint, tmp_path / "out.safetensors", base=sd15, drop=["text-encoder"])
    assert done.layers == sum(name.startswith("unet.") for name in value.layers)


def test_layers_that_are_not_there(sd15: Base, checkpoint: Path, style: lh.Adapter, tmp_path: Path) -> None:
    key = "model.diffusion_model.input_blocks.1.1.proj_in.weight"
    tensors = load_file(checkpoint)
    save_file({name: tensor for name, tensor in tensors.items() if name != key}, tmp_path / "pruned.safetensors")
    with pytest.raises(BaseMismatchError, match=r"lacks 1 layers .*: unet\.down_blocks\.0\.attentions\.0\.proj_in"):
        lh.bake(style, tmp_path / "pruned.safetensors", tmp_path / "out.safetensors", base=sd15)
    assert not (tmp_path / "out.safetensors").exists()


def test_another_base(sd15: Base, checkpoint: Path, style: lh.Adapter, tmp_path: Path) -> None:
    with pytest.raises(BaseMismatchError, match="is for sdxl, and base is tiny-sd15"):
        lh.bake(replace(style, base="sdxl"), checkpoint, tmp_path / "out.safetensors", base=sd15)


def test_what_a_checkpoint_has_no_place_for(sd15: Base, checkpoint: Path, style: lh.Adapter, tmp_path: Path) -> None:
    value = replace(style, embeddings={"cat": torch.zeros(1, 16)})
    with pytest.raises(UsageError, match=r"embeddings of tokens \(cat\).*--drop embeddings"):
        lh.bake(value, checkpoint, tmp_path / "out.safetensors", base=sd15)
    lh.bake(value, checkpoint, tmp_path / "out.safetensors", base=sd15, drop=["embeddings"])
    with pytest.raises(UsageError, match="cannot drop vae"):
        lh.bake(value, checkpoint, tmp_path / "two.safetensors", base=sd15, drop=["vae"])
    with pytest.raises(UsageError, match="is zero"):
        lh.bake(0 * style, checkpoint, tmp_path / "two.safetensors", base=sd15)


def test_the_output_stays_clear_of_what_is_there(
    sd15: Base, checkpoint: Path, style: lh.Adapter, tmp_path: Path
) -> None:
    (tmp_path / "there.safetensors").write_bytes(b"mine")
    with pytest.raises(ConflictError, match="exists already"):
        lh.bake(style, checkpoint, tmp_path / "there.safetensors", base=sd15)
    assert (tmp_path / "there.safetensors").read_bytes() == b"mine"
    lh.bake(style, checkpoint, tmp_path / "there.safetensors", base=sd15, force=True)
    for out, reason in (("base.safetensors", "in or over the base model"), ("out", "should end in .safetensors")):
        with pytest.raises(UsageError, match=reason):
            lh.bake(style, checkpoint, tmp_path / out, base=sd15, force=True)


def test_a_folder_is_replaced_only_when_nothing_is_lost(sd15: Base, style: lh.Adapter, tmp_path: Path) -> None:
    model = making.folder(tmp_path / "model", making.parts("sd15"), "sd15")
    for out in (model, model / "inside", tmp_path / "x.safetensors"):
        with pytest.raises(UsageError):
            lh.bake(style, model, out, base=sd15, force=True)
    lh.bake(style, model, tmp_path / "out", base=sd15)
    lh.bake(2 * style, model, tmp_path / "out", base=sd15, force=True)
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(ConflictError, match=r"also holds thesis\.tex"):
        lh.bake(style, model, tmp_path / "out", base=sd15, force=True)
    making.assert_rounded(making.read(tmp_path / "out", sd15), making.added(making.read(model, sd15), (2.0, style)))
    assert names(tmp_path) == ["model", "out"]


def test_numbers_that_do_not_fit(sd15: Base, checkpoint: Path, style: lh.Adapter, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"would hold NaN, Inf or numbers beyond 6\.55e\+04, which F16 cannot"):
        lh.bake(1e7 * style, checkpoint, tmp_path / "out.safetensors", base=sd15)
    assert names(tmp_path) == ["base.safetensors"]


def test_a_damaged_checkpoint(sd15: Base, checkpoint: Path, style: lh.Adapter, tmp_path: Path) -> None:
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:-100])
    with pytest.raises(FileFormatError, match="truncated"):
        lh.bake(style, checkpoint, tmp_path / "out.safetensors", base=sd15)
    checkpoint.write_bytes(whole[:1000])
    with pytest.raises(FileFormatError):
        lh.bake(style, checkpoint, tmp_path / "out.safetensors", base=sd15)
    assert names(tmp_path) == ["base.safetensors"]


def test_verification_sees_every_kind_of_damage(
    sd15: Base, checkpoint: Path, style: lh.Adapter, tmp_path: Path
) -> None:
    small = lh.Adapter(sd15.name, dict(list(style.layers.items())[:4]))
    opened = open_checkpoint(checkpoint, base=sd15)
    planned = plan(opened, operands.read(small, opened, base=sd15, drop=(), allow_pickle=False), "cpu")
    lh.bake(small, checkpoint, tmp_path / "out.safetensors", base=sd15)
    verify(planned, {checkpoint: tmp_path / "out.safetensors"})
    tensors = load_file(tmp_path / "out.safetensors")
    (edited, *_), untouched = planned.edits[checkpoint], "model.diffusion_model.out.2.weight"
    for key, message in ((edited, "is not what was asked for"), (untouched, "that was not to change")):
        wrong = {name: tensor * 1.01 if name == key else tensor for name, tensor in tensors.items()}
        save_file(wrong, tmp_path / "wrong.safetensors")
        with pytest.raises(VerificationError, match=message):
            verify(planned, {checkpoint: tmp_path / "wrong.safetensors"})
    with pytest.raises(VerificationError, match="is not what was asked for"):
        verify(planned, {checkpoint: checkpoint})


def test_the_check_fails_when_something_else_was_baked(sd15: Base, style: lh.Adapter, tmp_path: Path) -> None:
    model = making.folder(tmp_path / "model", making.parts("sd15"), "sd15")
    opened = open_checkpoint(model, base=sd15)
    lh.bake(0.9 * style, model, tmp_path / "other", base=sd15)

    def check(value: lh.Adapter, written: Path) -> checking.Check:
        request = operands.read(value, opened, base=sd15, drop=(), allow_pickle=False)
        return checking.check_outputs(plan(opened, request, "cpu"), written)

    assert check(0.9 * style, tmp_path / "other").difference < 0.01
    with pytest.raises(VerificationError, match="the check failed: baked, unet answers differently"):
        check(style, tmp_path / "other")
    with pytest.raises(PartialError, match=r"rounding changes the output of unet by .* and the adapters by .* only"):
        check(1e-4 * style, model)


def test_a_check_that_cannot_be_made_is_refused_first(
    sd15: Base, checkpoint: Path, style: lh.Adapter, tmp_path: Path
) -> None:
    with pytest.raises(PartialError, match=r"--check is inconclusive: base does not say how its unet is built"):
        lh.bake(style, checkpoint, tmp_path / "out.safetensors", base=sd15, check=True)
    assert names(tmp_path) == ["base.safetensors"]


BAKE = """
import sys, lorahub as lh
from tests.baking import making
from tests.files import tiny
base = tiny.base("sd15")
print("ready", flush=True)
lh.bake(making.adapter(base, components=("unet",)), sys.argv[1], sys.argv[2], base=base, progress={progress})
"""


def bake_in_a_process(source: Path, out: Path, progress: str) -> subprocess.Popen[bytes]:
    code = BAKE.format(progress=progress)
    root = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, source, out], cwd=root, stdout=subprocess.PIPE)


def test_killed_in_the_middle(sd15: Base, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    stop = "lambda done, total: (print('half', flush=True), __import__('time').sleep(600)) if done == 9 else None"
    process = bake_in_a_process(checkpoint, out, stop)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == [b"ready\n", b"half\n"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not out.exists()
    making.read(checkpoint, sd15)


def test_a_full_disk(sd15: Base, checkpoint: Path, style: lh.Adapter, tmp_path: Path) -> None:
    """A limit of file size is the full disk that a test may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (checkpoint.stat().st_size // 2, hard))
    try:
        with pytest.raises(LorahubError, match="cannot write"):
            lh.bake(style, checkpoint, tmp_path / "out.safetensors", base=sd15)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert names(tmp_path) == ["base.safetensors"]
