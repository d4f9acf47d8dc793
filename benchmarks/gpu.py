"""SDXL-sized work on a GPU, with random weights: rank reduction, an adapter put on, a step, and steps of distillation.

`python -m benchmarks.gpu [--steps 8] [--batch 4] [--tiny]`. The U-Net is made on the meta device and filled in half
precision on the GPU, so nothing is downloaded. Without a GPU it says so and measures nothing; --tiny runs the same code
on a small U-Net on the CPU, which proves that it works and whose figures mean nothing.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import lorahub as lh
from benchmarks.measure import table
from lorahub.algebra.lowrank import LowRank
from lorahub.algebra.recipe import Source
from lorahub.bases.configs import RECIPES
from lorahub.distill import Batch, Conditioning, Settings, distill
from lorahub.distill.settings import TARGETS
from lorahub.merge import merge
from lorahub.quiet import quiet

SDXL: Mapping[str, Any] = {
    **next(part.config for base in RECIPES if base.name == "sdxl" for part in base.parts if part.name == "unet"),
    "sample_size": 128,
}
"""Pictures of 1024 pixels."""
TINY: Mapping[str, Any] = {
    **SDXL,
    "sample_size": 8,
    "down_block_types": SDXL["down_block_types"][:2],
    "up_block_types": SDXL["up_block_types"][1:],
    "block_out_channels": (8, 16),
    "transformer_layers_per_block": (1, 1),
    "attention_head_dim": (1, 2),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 32,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 16,
}
TOKENS = 77


@dataclass(frozen=True)
class Size:
    """What is measured. side: of the latents. pooled: width of the pooled text embedding."""

    config: Mapping[str, Any]
    rank: int
    device: str
    dtypes: tuple[str, ...]

    @property
    def side(self) -> int:
        return int(self.config["sample_size"])

    @property
    def pooled(self) -> int:
        return int(self.config["projection_class_embeddings_input_dim"] - 6 * self.config["addition_time_embed_dim"])


@dataclass(frozen=True)
class Row:
    """One measurement. seconds: for one of `unit`. peak: bytes of the GPU at most in use, None on a CPU."""

    what: str
    dtype: str
    seconds: float
    unit: str
    peak: int | None


def pipeline(size: Size, dtype: str) -> Any:
    """A StableDiffusionXLPipeline that is a U-Net and a scheduler, its weights random and of ordinary size."""
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    with quiet():
        with torch.device("meta"):
            unet = UNet2DConditionModel(**size.config)
        unet = unet.to(getattr(torch, dtype)).to_empty(device=size.device).eval()
        fill(unet)
        scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
        parts = dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
        return StableDiffusionXLPipeline(unet=unet, scheduler=scheduler, add_watermarker=False, **parts)


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Matrices of variance 1 / fan in, norms that change nothing, no biases."""
    random = torch.Generator(next(model.parameters()).device).manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            weight.normal_(0, 1 / math.sqrt(weight[0].numel()), generator=random)
        else:
            weight.fill_(1.0 if name.endswith("weight") else 0.0)


def adapter(unet: nn.Module, rank: int, seed: int) -> lh.Adapter:
    """Random factors on every module that LCM-LoRA adapts, on the model's device in float32; ΔW is a hundredth of W."""
    random = torch.Generator(next(unet.parameters()).device).manual_seed(seed)
    layers = {}
    for name, module in unet.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or not name.endswith(TARGETS):
            continue
        inner = weight[0].numel()
        up = torch.randn(len(weight), rank, generator=random, device=weight.device) * 0.01
        down = torch.randn(rank, inner, generator=random, device=weight.device) / math.sqrt(inner * rank)
        layers[f"unet.{name}"] = LowRank.of(up, down, shape=tuple(weight.shape))
    return lh.Adapter("unlisted:dotted", layers, recipe=Source(f"random{seed}"))


@dataclass
class Clock:
    """Seconds of a block and the GPU's peak in it, once the GPU has done all that it was given."""

    device: str
    seconds: float = 0.0
    peak: int | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        on_gpu = self.device.startswith("cuda")
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        yield
        if on_gpu:
            torch.cuda.synchronize()
            self.peak = int(torch.cuda.max_memory_allocated())
        self.seconds = time.perf_counter() - began


def algebra(size: Size) -> Iterator[Row]:
    """Two adapters added, or merged by methods that form ΔW and that do not, and brought back to the rank of one."""
    pipe = pipeline(size, size.dtypes[0])
    one, other = (adapter(pipe.unet, size.rank, seed) for seed in (1, 2))
    clock = Clock(size.device)
    for what in ("first time", "again"):
        with clock():
            lh.truncate(0.8 * one + 1.0 * other, lh.fixed(size.rank), device=size.device)
        yield Row(f"two adapters of rank {size.rank} to one, {what}", "float32", clock.seconds, "sum", clock.peak)
    for method in ("ties", "knots_ties", "tsv"):
        with clock():
            merge([one, other], [0.8, 1.0], method, {}, lh.fixed(size.rank), device=size.device)
        yield Row(f"the same merged by {method}", "float32", clock.seconds, "merge", clock.peak)


@torch.no_grad()
def steps(size: Size, dtype: str, count: int) -> Iterator[Row]:
    """One call of the U-Net for one picture: without an adapter, with one at run time, and with it fused."""
    pipe = pipeline(size, dtype)
    given = batch(size, 1, dtype, size.device)
    told = {"text_embeds": given.conditioning.pooled, "time_ids": given.conditioning.time_ids}
    clock = Clock(size.device)

    def call(what: str) -> Row:
        pipe.unet(given.latents, 500, given.conditioning.prompt_embeds, added_cond_kwargs=told)
        with clock():
            for _ in range(count):
                pipe.unet(given.latents, 500, given.conditioning.prompt_embeds, added_cond_kwargs=told)
        return Row(what, dtype, clock.seconds / count, "step", clock.peak)

    yield call("step, no adapter")
    vector = adapter(pipe.unet, size.rank, 1)
    with clock():
        lh.attach(pipe, vector)
    yield Row("put an adapter on", dtype, clock.seconds, "adapter", clock.peak)
    yield call("step, adapter at run time")
    with clock():
        pipe.fuse_lora(components=["unet"])
    yield Row("fuse it", dtype, clock.seconds, "adapter", clock.peak)
    yield call("step, adapter fused")


def batch(size: Size, count: int, dtype: str, device: str, seed: int = 0) -> Batch:
    """Random latents and conditions."""
    random = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, generator=random).to(device, getattr(torch, dtype))

    sizes = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]] * count).to(device, getattr(torch, dtype))
    condition = Conditioning(noise(TOKENS, size.config["cross_attention_dim"]), noise(size.pooled), sizes)
    return Batch(noise(4, size.side, size.side), condition)


@dataclass(frozen=True)
class Batches:
    """A stream of random batches."""

    size: Size
    count: int

    def at(self, step: int) -> Batch:
        return batch(self.size, self.count, "float32", "cpu", step)


def distillation(size: Size, dtype: str, count: int, pictures: int) -> Row:
    """Steps of LCM-LoRA distillation; the first two, which also set things up, are not counted."""
    pipe = pipeline(size, dtype)
    precision = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}[dtype]
    ends: list[float] = []
    settings = Settings(
        rank=size.rank,
        steps=count + 2,
        batch_size=pictures,
        precision=precision,
        gradient_checkpointing=True,
        checkpoint_every=0,
        unconditional="zeros",
    )
    clock = Clock(size.device)
    with clock():
        # The loss of a step is read before it is reported, so that the step is over by then.
        distill(pipe, Batches(size, pictures), settings, progress=lambda report: ends.append(time.perf_counter()))
    seconds = (ends[-1] - ends[1]) / (len(ends) - 2)
    return Row(f"distil, {pictures} pictures a step", dtype, seconds / pictures, "picture", clock.peak)


def measure(size: Size, count: int, pictures: int, report: Callable[[Row], None]) -> None:
    for row in algebra(size):
        report(row)
    for dtype in size.dtypes:
        for row in steps(size, dtype, count):
            report(row)
        report(distillation(size, dtype, count, pictures))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8, help="how many of each are timed")
    parser.add_argument("--batch", type=int, default=4, help="pictures in a step of distillation")
    parser.add_argument("--tiny", action="store_true", help="a small U-Net on the CPU: figures mean nothing")
    given = parser.parse_args(arguments)
    if given.tiny:
        size = Size(TINY, 4, "cpu", ("float32", "bfloat16"))
    elif torch.cuda.is_available():
        size = Size(SDXL, 64, "cuda", ("float16", "bfloat16"))
    else:
        print("torch finds no CUDA device on this machine: nothing was measured (--tiny shows that the code runs)")
        return
    name = torch.cuda.get_device_name() if size.device == "cuda" else "CPU, tiny: figures mean nothing"
    print(f"{name}, torch {torch.__version__}\n")
    rows: list[Row] = []
    measure(size, given.steps, given.batch, rows.append)
    head = ("", "dtype", "seconds", "for one", "a second", "peak MB")
    lines = [
        (row.what, row.dtype, row.seconds, row.unit, 1 / row.seconds, "-" if row.peak is None else row.peak / 1e6)
        for row in rows
    ]
    table([head, *lines])


if __name__ == "__main__":
    main()
