"""Memory at hand to placement, as a table; and that offloading is what accelerate does with it."""

from __future__ import annotations

import pytest

from lorahub.errors import UsageError
from lorahub.validate.fitting import MAX_BATCH, Fit, choose

GIB = 2**30
SD15 = {"unet": 860_000_000, "text_encoder": 123_000_000, "vae": 84_000_000}
SDXL = {"unet": 2_567_000_000, "text_encoder": 123_000_000, "text_encoder_2": 695_000_000, "vae": 84_000_000}
FLUX = {"transformer": 11_900_000_000, "text_encoder": 123_000_000, "text_encoder_2": 4_760_000_000, "vae": 84_000_000}
SMALL, LARGE = 512**2, 1024**2


@pytest.mark.parametrize(
    ("parameters", "gib", "pixels", "flow", "wanted"),
    [
        (SD15, 80, SMALL, False, ("float16", "none", False)),
        (SD15, 4, SMALL, False, ("float16", "none", False)),
        (SDXL, 24, LARGE, False, ("float16", "none", False)),
        (SDXL, 12, LARGE, False, ("float16", "none", True)),
        (SDXL, 9, LARGE, False, ("float16", "model", True)),
        (SDXL, 4, LARGE, False, ("float16", "sequential", True)),
        (FLUX, 80, LARGE, True, ("bfloat16", "none", False)),
        (FLUX, 32, LARGE, True, ("bfloat16", "model", True)),
        (FLUX, 16, LARGE, True, ("bfloat16", "sequential", True)),
    ],
)
def test_a_gpu_gets_the_fastest_placement_that_fits(
    parameters: dict[str, int], gib: int, pixels: int, flow: bool, wanted: tuple[str, str, bool]
) -> None:
    fit = choose(parameters, device="cuda", memory=gib * GIB, pixels=pixels, flow=flow)
    assert (fit.dtype, fit.offload, fit.sliced) == wanted
    assert fit.batch == 1 or fit.offload == "none"


@pytest.mark.parametrize(("gib", "wanted"), [(64, ("float32", False)), (6, ("float32", True)), (4, ("bfloat16", True))])
def test_a_cpu_computes_in_float32_while_that_fits(gib: int, wanted: tuple[str, bool]) -> None:
    fit = choose(SD15, device="cpu", memory=gib * GIB, pixels=SMALL)
    assert (fit.dtype, fit.sliced, fit.offload) == (*wanted, "none")


def test_flow_matching_without_bf16_is_float32() -> None:
    assert choose(SD15, device="cuda", memory=24 * GIB, pixels=SMALL, flow=True, bf16=False).dtype == "float32"


def test_the_batch_grows_with_the_memory_that_is_left_up_to_a_limit() -> None:
    batches = [choose(SD15, device="cuda", memory=gib * GIB, pixels=SMALL).batch for gib in (4, 12, 80)]
    assert batches == sorted(batches)
    assert batches[0] < batches[1] < batches[2] == MAX_BATCH
    assert choose({"unet": 1_000_000}, device="cpu", memory=GIB, pixels=32**2) == Fit("cpu", "float32", batch=MAX_BATCH)


@pytest.mark.parametrize(("device", "gib"), [("cpu", 2), ("cuda", 1)])
def test_too_little_memory_is_said_with_the_numbers(device: str, gib: int) -> None:
    with pytest.raises(UsageError, match=rf"{device}: drawing needs about \d+\.\d GiB and {gib}\.0 GiB are free"):
        choose(SDXL, device=device, memory=gib * GIB, pixels=LARGE)
