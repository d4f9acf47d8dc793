"""Sources of training batches: pictures with captions, or prompts alone, of which the teacher draws the pictures.

The rule: `at(number)` is a pure function of the seed and the number, so a killed run goes on with the same batches, and
processes that take turns at the numbers share one stream. A sample's position in it, `number * batch_size + row`, decides
all that is random about it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorahub.distill.caching import Entry, key_of, model_hash
from lorahub.distill.conditioning import Batch
from lorahub.distill.data_encoding import Encoder
from lorahub.distill.data_pictures import Pictures
from lorahub.errors import UsageError, VerificationError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Progress = Callable[[int, int, str], None]
"""Takes how many are done, of how many, and what they are."""


@dataclass(frozen=True)
class Order:
    """Which of `count` samples each batch takes: a new shuffle every epoch, without a gap between epochs."""

    count: int
    batch_size: int
    seed: int = 0

    def at(self, number: int) -> list[tuple[int, int]]:
        """(position in the stream, sample) of each row of a batch."""
        positions = range(number * self.batch_size, (number + 1) * self.batch_size)
        return [
            (each, int(_shuffle(self.count, self.seed, each // self.count)[each % self.count])) for each in positions
        ]

    def generator(self, position: int, purpose: str) -> torch.Generator:
        """Random numbers that belong to one position, and are used for one purpose."""
        return seeded(self.seed, purpose, position)


def seeded(*parts: object) -> torch.Generator:
    """A generator on the CPU whose seed is a hash of the parts, so that no two purposes share a stream."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@lru_cache(maxsize=2)  # a batch may lie in two epochs
def _shuffle(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=seeded(seed, "order", epoch))


class PictureSource:
    """Batches of captioned pictures; every epoch draws its latents anew from the moments, and its flips if asked."""

    def __init__(
        self, pictures: Pictures, encoder: Encoder, order: Order, *, resolution: int, flip: bool = False
    ) -> None:
        self._pictures, self._encoder, self._order = pictures, encoder, order
        self._resolution, self._flip = resolution, flip

    def __len__(self) -> int:
        return len(self._pictures)

    def prepare(self, rank: int = 0, world: int = 1, progress: Progress | None = None) -> None:
        """Fill the cache with every `world`-th picture and caption from `rank` on; what is there is not made again.

        Raises what `Encoder.moments` raises; what was made until then is kept. Does nothing without a cache.
        """
        cache = self._encoder.cache
        if cache is None:
            return
        share = range(rank, len(self), world)
        with cache, self._encoder.ready():
            for done, index in enumerate(share):
                picture = self._pictures[index]
                for flip in (False, True) if self._flip else (False,):
                    self._encoder.moments(picture, self._resolution, flip=flip)
                self._encoder.prompt(picture.caption)
                if progress is not None:
                    progress(done + 1, len(share), "pictures")

    def at(self, step: int) -> Batch:
        """Batch number `step`, on the CPU: latents in float32, the condition in the text encoder's dtype."""
        latents, captions, sizes = [], [], []
        with self._encoder.ready():
            for position, index in self._order.at(step):
                picture = self._pictures[index]
                flip = self._flip and bool(torch.rand((), generator=self._order.generator(position, "flip")) < 0.5)
                entry = self._encoder.moments(picture, self._resolution, flip=flip)
                latents.append(_sample(entry, self._order.generator(position, "latent")))
                captions.append(picture.caption)
                sizes.append([*entry["size"].tolist(), self._resolution, self._resolution])
        scale = self._encoder.pipeline.vae.config.scaling_factor
        return Batch(torch.stack(latents) * scale, self._encoder.condition(captions, sizes))


def _sample(entry: Entry, generator: torch.Generator) -> Tensor:
    mean, std = entry["mean"].float(), entry["std"].float()
    return mean + std * torch.randn(mean.shape, generator=generator)


@dataclass(frozen=True)
class Drawing:
    """How a teacher draws pictures for prompts: with its own scheduler, `per_prompt` times each prompt."""

    resolution: int
    steps: int = 30
    guidance_scale: float = 7.5
    per_prompt: int = 1


class PromptSource:
    """Batches of latents that the pipeline itself has drawn for the prompts; they lie in the cache."""

    def __init__(self, prompts: Sequence[str], encoder: Encoder, order: Order, drawing: Drawing) -> None:
        """`order` counts drawings: `per_prompt` for each prompt. Raises UsageError without a cache or prompts."""
        if encoder.cache is None:
            raise UsageError("pictures drawn for prompts are drawn once and kept: say where with `cache`")
        self._prompts, self._encoder, self._order, self._drawing = prompts, encoder, order, drawing
        self._teacher = _teacher_hash(encoder)

    def __len__(self) -> int:
        return self._order.count

    def prepare(self, rank: int = 0, world: int = 1, progress: Progress | None = None) -> None:
        """Draw what is not in the cache, every `world`-th drawing from `rank` on."""
        assert self._encoder.cache is not None
        share = range(rank, len(self), world)
        with self._encoder.cache:
            for done, index in enumerate(share):
                self._encoder.kept(self._key(index), partial(self._draw, index))
                self._encoder.prompt(self._prompt(index))
                if progress is not None:
                    progress(done + 1, len(share), "drawings")

    def at(self, step: int) -> Batch:
        """Batch number `step`, on the CPU; the same drawing comes again every epoch."""
        rows = [index for _, index in self._order.at(step)]
        latents = [self._drawn(index).float() for index in rows]
        side = self._drawing.resolution
        return Batch(
            torch.stack(latents),
            self._encoder.condition(
                [self._prompt(index) for index in rows], [(side, side, 0, 0, side, side)] * len(rows)
            ),
        )

    def _prompt(self, index: int) -> str:
        return self._prompts[index // self._drawing.per_prompt]

    def _key(self, index: int) -> str:
        drawn = self._encoder.prompt_key(self._prompt(index)), index % self._drawing.per_prompt
        return key_of("drawn", *drawn, self._order.seed, vars(self._drawing), self._teacher)

    def _drawn(self, index: int) -> Tensor:
        cache = self._encoder.cache
        assert cache is not None
        key = self._key(index)
        if key not in cache:
            cache.refresh()  # another process may have drawn it
        found = cache.get(key)
        if found is None:  # the pipeline may be in training by now, so it must not draw
            raise VerificationError(f"a drawing is gone from {cache.folder}, or damaged: start again to have it drawn")
        return found["latents"]

    @torch.no_grad()
    def _draw(self, index: int) -> Entry:
        pipeline: Any = self._encoder.pipeline
        drawing = self._drawing
        before = getattr(pipeline, "_progress_bar_config", {})
        pipeline.set_progress_bar_config(disable=True)
        try:
            latents = pipeline(
                self._prompt(index),
                height=drawing.resolution,
                width=drawing.resolution,
                num_inference_steps=drawing.steps,
                guidance_scale=drawing.guidance_scale,
                generator=seeded(self._order.seed, "draw", self._prompt(index), index % drawing.per_prompt),
                output_type="latent",
            ).images[0]
        finally:
            pipeline.set_progress_bar_config(**before)
        return {"latents": latents.cpu()}


def _teacher_hash(encoder: Encoder) -> str:
    pipeline: DiffusionPipeline = encoder.pipeline
    scheduler = {name: value for name, value in pipeline.scheduler.config.items() if not name.startswith("_")}
    return key_of(model_hash(pipeline.unet), encoder.text_hash, type(pipeline.scheduler).__name__, scheduler)
