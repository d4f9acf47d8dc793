"""Everything that takes a device gives there what it gives on the CPU, and computes nowhere else.

On a stand-in for a device, which refuses operands of two devices, and on a GPU where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lorahub as lh
from lorahub.algebra.dense import leading, leading_all
from lorahub.algebra.geometry import layer_grams
from lorahub.comparing import compare
from lorahub.merge import METHODS, merge
from tests.algebra.making import adapter, dense, random_layer, reloaded, with_spectrum
from tests.baking import making
from tests.baking.test_dora import kohya_dora
from tests.devices import elsewhere
from tests.test_extracting import model, original, tuned

CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device on this machine"),
]


@pytest.fixture(params=["elsewhere", pytest.param("cuda", marks=CUDA)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "cuda":
        yield "cuda"
        return
    with elsewhere() as name:
        yield name


def on_cpu(value: lh.Adapter) -> bool:
    factors = [each for layer in value.layers.values() for block in layer.blocks for each in (block.up, block.down)]
    return {each.device.type for each in (*factors, *value.offsets.values())} <= {"cpu"}


def pair() -> list[lh.Adapter]:
    """Layers of a few shapes, two alike; one that only one adapter has, one that cancels, one of dependent columns."""
    spectrum = [1.0, 0.5, 0.3, 0.2, 0.1, 0.05]
    shared = random_layer((90, 80), 4, seed=9, dtype=torch.float16)
    made = []
    for seed, name in ((1, "style"), (2, "lcm")):
        layers = {
            "wide": with_spectrum(spectrum, (70, 200), seed=seed, form="mixed", dtype=torch.float16),
            "square": with_spectrum(spectrum, (90, 80), seed=seed, form="mixed", dtype=torch.float16),
            "square_too": with_spectrum(spectrum, (90, 80), seed=seed + 10, form="mixed", dtype=torch.float16),
            "conv": with_spectrum(spectrum, (48, 16, 3, 3), seed=seed, form="mixed"),
            "opposite": (1.0 if seed == 1 else -0.999) * reloaded(shared),
            "dependent": shared + 0.5 * reloaded(shared),
            **({"alone": random_layer((33, 44), 3, seed=seed)} if seed == 1 else {}),
        }
        bias = torch.arange(5.0) * seed
        made.append(replace(adapter(name, **layers), offsets={"unet.square.bias": bias}))
    return made


@pytest.mark.parametrize(
    ("method", "dtype"), [*((method, torch.float32) for method in METHODS), ("knots_ties", torch.float64)], ids=str
)
def test_merging(device: str, method: str, dtype: torch.dtype) -> None:
    here, there = (
        merge(pair(), [0.8, 1.0], method, {}, lh.fixed(4), dtype=dtype, device=each) for each in ("cpu", device)
    )
    assert on_cpu(there)
    assert_alike(here, there, 1e-4 if dtype == torch.float32 else 1e-8)


def assert_alike(here: lh.Truncated, there: lh.Truncated, tolerance: float) -> None:
    assert (list(there.layers), there.recipe) == (list(here.layers), here.recipe)
    assert there.report.keys() == here.report.keys()
    for name, layer in here.layers.items():
        size = here.report[name].norm
        assert float((dense(there.layers[name]) - dense(layer)).norm()) <= tolerance * size, name
        assert there.report[name].error == pytest.approx(here.report[name].error, rel=1e-3, abs=tolerance * size)
    for name, offset in here.offsets.items():
        assert torch.allclose(there.offsets[name], offset, rtol=1e-5)


def test_comparing(device: str) -> None:
    here, there = (compare(*pair(), device=each) for each in ("cpu", device))
    assert there.norms == pytest.approx(here.norms, rel=1e-5)
    assert there.cosine == pytest.approx(here.cosine, abs=1e-5)
    assert there.rank_use == here.rank_use
    assert {gram.device.type for gram in layer_grams(pair(), device).values()} == {"cpu"}


def checkpoints(folder: Path) -> tuple[Path, Path]:
    """With more layers of one shape, of which one does not differ, and one differs in its last digits alone."""
    base, other = original(), tuned()
    for number in range(4):
        base[f"more.{number}.weight"] = original(number)["blocks.0.attn.to_q.weight"]
        gap = other["blocks.0.attn.to_q.weight"] - base["blocks.0.attn.to_q.weight"]
        scale = (1.0, 0.0, 1e-4, -3.0)[number]
        other[f"more.{number}.weight"] = base[f"more.{number}.weight"] + scale * gap.roll(number, 0)
    return model(folder / "base", base), model(folder / "tuned", other)


@pytest.mark.parametrize("rule", [lh.fixed(8), lh.energy(0.8), lh.budget(60_000)], ids=str)
def test_extracting(device: str, rule: lh.RankRule, tmp_path: Path) -> None:
    paths = checkpoints(tmp_path)
    done: list[tuple[int, int]] = []
    here = lh.extract(*paths, rule, offsets=True)
    there = lh.extract(*paths, rule, offsets=True, device=device, progress=lambda *told: done.append(told))
    assert on_cpu(there)
    assert (there.same, there.notes) == (here.same, here.notes) == (1, ())
    assert done[-1] == (9, 9)
    assert done == sorted(done) or rule.overall is not None
    assert_alike(here, there, 1e-4)


def test_matrices_decomposed_together_are_those_decomposed_alone() -> None:
    """However many rounds each of them takes; one has less than the wanted rank."""
    random = torch.Generator().manual_seed(0)
    shape, index = (300, 400), torch.arange(1.0, 301)
    left = torch.linalg.qr(torch.randn(5, 300, 300, generator=random)).Q
    right = torch.linalg.qr(torch.randn(5, 400, 300, generator=random)).Q
    spectra = torch.stack([index**-0.3, index**-1.0, index**-2.0, index * 0 + 1, (index < 6).float()])
    matrices = left * spectra[:, None] @ right.mT
    choose = lh.fixed(20).per_layer
    assert choose is not None
    for matrix, found in zip(matrices, leading_all(matrices, choose), strict=True):
        wanted = leading(matrix, choose)
        assert (found.up.shape, found.down.shape) == ((shape[0], len(found.sigma)), (len(found.sigma), shape[1]))
        assert torch.allclose(found.sigma, wanted.sigma, rtol=1e-5)
        assert found.error == pytest.approx(wanted.error, rel=1e-5, abs=1e-6 * wanted.norm)
        apart = torch.linalg.matrix_norm(found.up @ found.down - wanted.up @ wanted.down)
        assert float(apart) <= 1e-4 * wanted.norm
    turned = leading_all(matrices.mT.contiguous(), choose)
    assert [each.up.shape[0] for each in turned] == [400] * 5


def test_baking(device: str, tmp_path: Path) -> None:
    """A plain adapter on some layers of each component, and DoRAs with either axis."""
    base = making.base("sd15")
    folder = making.folder(tmp_path / "model", making.parts("sd15", torch.float32), "sd15")
    value = making.adapter(base)
    some = {name: layer for number, (name, layer) in enumerate(value.layers.items()) if number % 40 == 0}
    making.saved(replace(value, layers=some), tmp_path / "plain.safetensors", base)
    for of_rows in (True, False):
        kohya_dora(making.read(folder, base), tmp_path / f"dora-{of_rows}.safetensors", of_rows=of_rows)
    text = f"{tmp_path}/plain.safetensors + 0.5*{tmp_path}/dora-True.safetensors + {tmp_path}/dora-False.safetensors"
    here, there = (
        lh.bake(text, folder, tmp_path / f"out-{number}", base=base, device=each)
        for number, each in enumerate(("cpu", device))
    )
    assert (there.layers, there.dora_layers) == (here.layers, here.dora_layers)
    assert there.rounding == pytest.approx(here.rounding, rel=0.2)
    assert_near(*(making.read(tmp_path / f"out-{number}", base) for number in (0, 1)))


def assert_near(here: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> None:
    for name, tensor in here.items():
        assert torch.allclose(there[name], tensor, rtol=1e-5, atol=1e-5 * float(tensor.abs().max())), name


def test_operands_of_two_devices_are_refused() -> None:
    """What the tests above rely on."""
    here = torch.ones(3, 3)
    with elsewhere() as device:
        there = torch.ones(3, 3, device=device) * 2
        assert there.device.type == device
        assert float((there @ here.to(device)).sum()) == 54
        assert here.copy_(there).equal(torch.full((3, 3), 2.0))
        assert torch.tensor([1.5], device=device).cpu().tolist() == [1.5]
        for wrong in (lambda: there @ here, lambda: there.add_(here), lambda: torch.cat([here, there]), there.numpy):
            with pytest.raises((RuntimeError, TypeError)):
                wrong()
