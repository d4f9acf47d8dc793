"""A fine-tuned checkpoint minus its base against the difference and its SVD in float64, in any spelling and precision."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor

import lorahub as lh
from lorahub.algebra.recipe import expression
from lorahub.checkpoints import open_checkpoint
from lorahub.cli import main
from lorahub.errors import BaseMismatchError, UsageError, VerificationError
from tests.checkpoints import making
from tests.files import tiny

Tensors = dict[str, Tensor]

SHAPES = {
    "blocks.0.attn.to_q": (320, 300),
    "blocks.0.attn.to_out.0": (48, 64),
    "blocks.0.ff.net.0.proj": (600, 160),
    "blocks.0.conv": (180, 40, 3, 3),
    "blocks.1.proj_in": (64, 32, 1, 1),
}


def original(seed: int = 0) -> Tensors:
    random = torch.Generator().manual_seed(seed)
    tensors = {f"{name}.weight": torch.randn(shape, generator=random) for name, shape in SHAPES.items()}
    tensors |= {f"{name}.bias": torch.randn(shape[0], generator=random) for name, shape in SHAPES.items()}
    return tensors | {"blocks.0.norm.weight": torch.ones(320)}


def tuned(seed: int = 1) -> Tensors:
    """The original with a ΔW of falling singular values, i^-1, on every weight, and some on the vectors."""
    random = torch.Generator().manual_seed(seed)
    tensors = original()
    for name, tensor in tensors.items():
        if tensor.ndim == 1:
            tensors[name] = tensor + 0.01 * torch.randn(tensor.shape, generator=random)
            continue
        count = min(len(tensor), tensor[0].numel())
        left = torch.linalg.qr(torch.randn(len(tensor), count, generator=random)).Q
        right = torch.linalg.qr(torch.randn(tensor[0].numel(), count, generator=random)).Q
        gap = (left / torch.arange(1, count + 1)) @ right.T
        tensors[name] = tensor + gap.reshape(tensor.shape)
    return tensors


def model(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    return making.folder(path, {"transformer": tensors})


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return model(tmp_path / "base", original()), model(tmp_path / "tuned", tuned())


def gaps(base: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensors:
    """canonical layer -> the difference in float64, as stored."""
    return {
        f"transformer.{name}": other[f"{name}.weight"].double() - base[f"{name}.weight"].double() for name in SHAPES
    }


def apart(layer: lh.LowRank, gap: Tensor) -> float:
    return float(torch.linalg.vector_norm(layer.dense(torch.float64) - gap))


@pytest.mark.parametrize("rule", [lh.fixed(8), lh.energy(0.9), lh.relative(0.3)], ids=str)
def test_error_is_that_of_the_best_approximation(pair: tuple[Path, Path], rule: lh.RankRule) -> None:
    found = lh.extract(*pair, rule)
    assert rule.per_layer is not None
    squares = 0.0
    for name, gap in gaps(original(), tuned()).items():
        sigma = torch.linalg.svdvals(gap.reshape(len(gap), -1))
        rank = rule.per_layer(sigma)
        best = float(sigma[rank:].square().sum().sqrt())
        error = apart(found.layers[name], gap)
        assert (found.layers[name].rank, found.layers[name].shape) == (rank, gap.shape)
        assert best * (1 - 1e-5) <= error <= best * 1.002
        assert found.report[name].error == pytest.approx(error, rel=1e-3)
        squares += error**2
    assert found.error == pytest.approx(math.sqrt(squares), rel=1e-3)
    assert found.layers.keys() == gaps(original(), tuned()).keys()
    assert expression(found.recipe) == f"extract(1*tuned - 1*base, rule={rule})"


def test_known_vector_comes_back(tmp_path: Path) -> None:
    base = original()
    other = making.fine_tuned(base, rank=3, size=0.1, seed=4)
    found = lh.extract(model(tmp_path / "a", base), model(tmp_path / "b", other), lh.fixed(3))
    for name, gap in gaps(base, other).items():
        assert apart(found.layers[name], gap) < 1e-5 * float(torch.linalg.vector_norm(gap))
    assert found.relative_error < 1e-5
    assert found.left_out == {}


def test_budget_weighs_layers_against_each_other(pair: tuple[Path, Path]) -> None:
    rule = lh.budget(40_000)
    assert rule.overall is not None
    spectra = {name: torch.linalg.svdvals(gap.reshape(len(gap), -1)) for name, gap in gaps(original(), tuned()).items()}
    shapes = {name: (shape[0], math.prod(shape[1:])) for name, shape in SHAPES.items()}
    expected = rule.overall(spectra, {f"transformer.{name}": shape for name, shape in shapes.items()})
    found = lh.extract(*pair, rule)
    assert {name: layer.rank for name, layer in found.layers.items()} == {k: v for k, v in expected.items() if v}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_difference_is_that_of_the_stored_values(tmp_path: Path, dtype: torch.dtype) -> None:
    base = {key: value.to(dtype) for key, value in original().items()}
    other = {key: value.to(dtype) for key, value in tuned().items()}
    found = lh.extract(model(tmp_path / "a", base), model(tmp_path / "b", other), lh.fixed(1000))
    for name, gap in gaps(base, other).items():
        assert apart(found.layers[name], gap) < 1e-5 * float(torch.linalg.vector_norm(gap))


def test_rounding_alone_is_no_difference(tmp_path: Path) -> None:
    base, other = original(), {key: value.half() for key, value in original().items()}
    key = "blocks.0.attn.to_q.weight"
    other[key] = tuned()[key].half()
    found = lh.extract(model(tmp_path / "a", base), model(tmp_path / "b", other), lh.fixed(4))
    assert list(found.layers) == ["transformer.blocks.0.attn.to_q"]
    assert (found.same, found.left_out) == (4, {})
    with pytest.raises(UsageError, match="do not differ in any layer"):
        lh.extract(tmp_path / "a", tmp_path / "a", lh.fixed(4))


def test_shards_and_spellings_give_the_same_vector(tmp_path: Path) -> None:
    base = tiny.base("sd15")
    weights = {name: making.weights(part) for name, part in tiny.models(tiny.sd15()).items()}
    other = {name: making.fine_tuned(part, rank=2, size=0.05, seed=7) for name, part in weights.items()}
    single = tmp_path / "tuned.safetensors"
    encoder = {f"cond_stage_model.transformer.text_model.{key}": value for key, value in other["text_encoder"].items()}
    save_file(making.ldm(other["unet"], base) | encoder, single)
    making.folder(tmp_path / "base", weights)
    making.sharded(tmp_path / "sharded" / "unet", "diffusion_pytorch_model", other["unet"], 3)
    making.sharded(tmp_path / "sharded" / "text_encoder", "model", other["text_encoder"], 2, index=False)
    first = open_checkpoint(tmp_path / "base", base=base)
    results = [
        lh.extract(first, open_checkpoint(path, base=base), lh.fixed(2)) for path in (single, tmp_path / "sharded")
    ]
    assert len(results[0].layers) == 293
    assert {name.partition(".")[0] for name in results[0].layers} == {"unet", "text_encoder"}
    assert results[1].layers.keys() == results[0].layers.keys()
    for name, layer in results[1].layers.items():
        assert torch.equal(layer.up, results[0].layers[name].up)
        assert torch.equal(layer.down, results[0].layers[name].down)
    only = lh.extract(first, open_checkpoint(single, base=base), lh.fixed(2), only=["text_encoder"])
    assert {name.partition(".")[0] for name in only.layers} == {"text_encoder"}
    with pytest.raises(UsageError, match="component 'vae': they have text_encoder, unet"):
        lh.extract(first, first, lh.fixed(2), only=["vae"])


def test_vectors_are_kept_or_counted(pair: tuple[Path, Path]) -> None:
    without, with_them = lh.extract(*pair, lh.fixed(8)), lh.extract(*pair, lh.fixed(8), offsets=True)
    base, other = original(), tuned()
    names = [key for key, tensor in base.items() if tensor.ndim == 1]
    assert (without.offsets, with_them.left_out) == ({}, {})
    assert with_them.offsets.keys() == {f"transformer.{name}" for name in names}
    for name in names:
        assert torch.equal(with_them.offsets[f"transformer.{name}"], other[name] - base[name])
    left = math.sqrt(sum(float((other[name] - base[name]).square().sum()) for name in names))
    whole = math.sqrt(sum(float((other[name] - base[name]).square().sum()) for name in base))
    assert without.left_out == {"norms and biases": pytest.approx(left / whole, rel=1e-4)}


def test_embeddings_are_left_out_and_counted(tmp_path: Path) -> None:
    base = {"text_model.embeddings.token_embedding.weight": torch.ones(50, 8), "text_model.a.weight": torch.ones(8, 8)}
    other = {name: 2 * tensor for name, tensor in base.items()}
    paths = [making.folder(tmp_path / name, {"text_encoder": part}) for name, part in (("a", base), ("b", other))]
    found = lh.extract(*paths, lh.fixed(2))
    assert list(found.layers) == ["text_encoder.text_model.a"]
    assert found.left_out == {"embeddings": pytest.approx(math.sqrt(400 / 464))}


def test_what_one_side_lacks_is_said(tmp_path: Path) -> None:
    base, other = original(), tuned()
    del other["blocks.0.conv.weight"]
    found = lh.extract(model(tmp_path / "a", base), model(tmp_path / "b", other), lh.fixed(2))
    assert "transformer.blocks.0.conv" not in found.layers
    assert found.notes == (
        f"only {tmp_path / 'a'} has 1 layers of transformer, such as transformer.blocks.0.conv: they were not compared",
    )


def test_refusals(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    wide = original() | {"blocks.0.attn.to_q.weight": torch.ones(320, 301)}
    with pytest.raises(
        BaseMismatchError, match=r"to_q is \[320, 300\] in .* and \[320, 301\] in .*: these are two bases"
    ):
        lh.extract(pair[0], model(tmp_path / "wide", wide), lh.fixed(2))
    with pytest.raises(BaseMismatchError, match="have no layer in common"):
        lh.extract(pair[0], model(tmp_path / "other", {"x.weight": torch.ones(3, 3)}), lh.fixed(2))
    xl = making.hollow(tmp_path / "xl.safetensors", {f"{making.LDM}output_blocks.0.1.proj_in.weight": (1280, 1280)})
    with pytest.raises(BaseMismatchError, match="needs two models of one base"):
        lh.extract(pair[0], open_checkpoint(xl, base="sdxl"), lh.fixed(2))
    broken = tuned()
    broken["blocks.0.conv.weight"][3, 2, 1, 0] = float("nan")
    with pytest.raises(VerificationError, match=r"blocks\.0\.conv: the weights hold NaN or Inf"):
        lh.extract(pair[0], model(tmp_path / "nan", broken), lh.fixed(2))


def run(*arguments: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["extract", *map(str, arguments)], prog_name="lorahub")
    assert result.exit_code == code, result.output
    return result.stdout or result.stderr


def test_command(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    sides = ("--base", pair[0], "--tuned", pair[1])
    out = tmp_path / "style.safetensors"
    text = run(*sides, "-o", out, "--rank", "8")
    assert "5 layers, rank 8" in text
    assert "fixed(8) leaves out" in text
    assert "norms and biases differ too, by" in text
    result = json.loads(run(*sides, "-o", out, "--rank", "8", "--force", "--json"))
    vector = lh.load(out)
    expected = gaps(original(), tuned())
    whole = math.sqrt(sum(float(gap.square().sum()) for gap in expected.values()))
    error = math.sqrt(sum(apart(vector.layers[name], gap) ** 2 for name, gap in expected.items()))
    assert result["relative_error"] == pytest.approx(error / whole, rel=1e-2)
    assert (result["rule"], result["same"], result["rank_max"]) == ("fixed(8)", 0, 8)
    recipe = json.loads(load_metadata(out)["lorahub.provenance"])
    hashes = [open_checkpoint(side).data_sha256 for side in pair]
    assert [(parent["name"], parent["data_sha256"]) for parent in recipe["parents"]] == [
        ("tuned", hashes[1]),
        ("base", hashes[0]),
    ]
    assert recipe["settings"] == {"extract": {"rule": "fixed(8)"}}
    run(*sides, "-o", out, "--max-size", "60kB", "--force")
    assert 30_000 < out.stat().st_size <= 60_000
    assert "say how small" in run(*sides, "-o", out, code=2)
    assert "no such file" in run("--base", tmp_path / "no", "--tuned", pair[1], "-o", out, "--rank", "8", code=4)


def load_metadata(path: Path) -> dict[str, str]:
    from lorahub import header

    return dict(header.read(path).metadata)


def test_registered_with_both_as_parents(
    tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAHUB_HOME", str(tmp_path / "home"))
    result = json.loads(run("--base", pair[0], "--tuned", pair[1], "--name", "style", "--energy", "0.5", "--json"))
    assert result["registered"]["reference"] == "style:1"
    assert [parent["weight"] for parent in result["parents"]] == [1.0, -1.0]
    lineage = CliRunner().invoke(main, ["lineage", "style"]).output
    assert "tuned" in lineage
    assert "base" in lineage


@pytest.mark.parametrize("rule", [lh.fixed(8), lh.energy(0.5)], ids=str)
def test_bits_do_not_depend_on_the_number_of_threads(tmp_path: Path, rule: lh.RankRule) -> None:
    random = torch.Generator().manual_seed(0)
    one, other = (
        {f"blocks.{i}.to_q.weight": torch.randn(400 + 100 * i, 500, generator=random).half() for i in range(4)}
        for _ in range(2)
    )
    paths = model(tmp_path / "one.safetensors", one), model(tmp_path / "other.safetensors", other)
    found, before = [], torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        made = lh.extract(*paths, rule)
        found.append([each for layer in made.layers.values() for each in (layer.up, layer.down)])
    torch.set_num_threads(before)
    assert len(found[0]) == 8
    for each in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(each, found[0], strict=True))


MEMORY = """
import re, sys
from pathlib import Path
import torch
from lorahub.algebra.ranks import fixed
from lorahub.extracting import extract
torch.set_num_threads(1)
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
extract(sys.argv[3], sys.argv[4], fixed(4))  # the libraries' own buffers
before = peak()
found = extract(sys.argv[1], sys.argv[2], fixed(4))
print(len(found.layers), found.same, peak() - before)
"""


def test_memory_is_that_of_a_layer(tmp_path: Path) -> None:
    """Two checkpoints of 126 MB, read with less memory than a third of one: a layer in float64 is four of its own size."""
    layer = 2 * 1024 * 1024

    def checkpoint(name: str, layers: int, changed: int) -> Path:
        """Zero but for noise in the last layers."""
        shapes = {f"blocks.{number}.to_q.weight": (1024, 1024) for number in range(layers)}
        path = making.hollow(tmp_path / f"{name}.safetensors", shapes)
        noise = torch.randn(changed * layer // 2, generator=torch.Generator().manual_seed(0)).half()
        with path.open("r+b") as file:
            file.seek(-changed * layer, 2)
            file.write(noise.numpy().tobytes())
        return path

    paths = [checkpoint(name, *size) for name, size in (("a", (60, 0)), ("b", (60, 6)), ("c", (2, 0)), ("d", (2, 1)))]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEMORY, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        cwd=Path(__file__).parents[1],
    )
    layers, same, grown = map(int, done.stdout.split())
    assert (layers, same) == (6, 54)
    assert grown < 20 * layer
