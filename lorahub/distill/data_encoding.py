"""Pictures and prompts as the U-Net takes them, each computed once where there is a cache.

The rule: one picture, one prompt at a time, so that what is made of it depends on nothing beside it, cached or not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorahub.distill.caching import Cache, Entry, key_of, model_hash
from lorahub.distill.conditioning import Conditioning, encode_prompts
from lorahub.distill.data_pictures import Picture, crop
from lorahub.errors import UsageError, VerificationError
from lorahub.files.store import finite

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class Encoder:
    """A pipeline's VAE and text encoders, and the cache of what they have made."""

    def __init__(self, pipeline: DiffusionPipeline, cache: Cache | None = None) -> None:
        """Raises UsageError when the pipeline lacks its VAE or text encoder."""
        for part in ("vae", "text_encoder", "tokenizer"):
            if getattr(pipeline, part, None) is None:
                raise UsageError(f"the pipeline has no {part}: load it whole")
        self.pipeline = pipeline
        self.cache = cache

    @cached_property
    def vae_hash(self) -> str:
        return model_hash(self.pipeline.vae)

    @cached_property
    def text_hash(self) -> str:
        return key_of(*(model_hash(encoder) for encoder, _ in self._text_parts()))

    def moments(self, picture: Picture, resolution: int, *, flip: bool = False) -> Entry:
        """`mean` and `std` [C, h, w] of q(z|x), not scaled, and `size`: original height and width, crop top and left.

        Raises FileFormatError for a broken image, VerificationError when the VAE answers with NaN.
        """

        def make() -> Entry:
            cropped = crop(picture, resolution)
            pixels = cropped.pixels.flip(-1) if flip else cropped.pixels
            mean, std = self._encode(pixels)
            if not (finite(mean) and finite(std)):
                raise VerificationError(f"the VAE makes NaN or Inf of {picture.name}: load the pipeline in float32")
            return {"mean": mean, "std": std, "size": torch.tensor([*cropped.original, *cropped.corner])}

        if self.cache is None:
            return make()
        image = hashlib.sha256(picture.data).hexdigest()
        return self.kept(key_of("moments", image, resolution, flip, self.vae_hash), make)

    def condition(self, prompts: Sequence[str], time_ids: Sequence[Sequence[int]]) -> Conditioning:
        """The prompts encoded, on the CPU; the six time ids of each are used where the pipeline has pooled embeddings."""
        entries = [self.prompt(prompt) for prompt in prompts]
        embeds = torch.stack([entry["embeds"] for entry in entries])
        if "pooled" not in entries[0]:
            return Conditioning(embeds)
        pooled = torch.stack([entry["pooled"] for entry in entries])
        return Conditioning(embeds, pooled, torch.tensor([*time_ids], dtype=torch.float32))

    def prompt(self, prompt: str) -> Entry:
        """`embeds` [T, D] and, for SDXL, `pooled` [P] of one prompt."""

        def make() -> Entry:
            made = encode_prompts(self.pipeline, [prompt])
            entry = {"embeds": made.prompt_embeds[0].cpu()}
            return entry if made.pooled is None else {**entry, "pooled": made.pooled[0].cpu()}

        return make() if self.cache is None else self.kept(self.prompt_key(prompt), make)

    def prompt_key(self, prompt: str) -> str:
        """What stands for a prompt in keys: its tokens, and the encoders that will read them."""
        tokens = [
            tokenizer(prompt, padding="max_length", max_length=tokenizer.model_max_length, truncation=True).input_ids
            for _, tokenizer in self._text_parts()
        ]
        return key_of("prompt", tokens, self.text_hash)

    def kept(self, key: str, make: Callable[[], Entry]) -> Entry:
        """The cache's entry under `key`, made where it is not there."""
        found = None if self.cache is None else self.cache.get(key)
        if found is not None:
            return found
        made = make()
        if self.cache is not None:
            self.cache.put(key, made)
        return made

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Hold a VAE that overflows in fp16 (`force_upcast`) in fp32 while the block encodes."""
        vae: Any = self.pipeline.vae
        if vae.dtype != torch.float16 or not vae.config.force_upcast:
            yield
            return
        nn.Module.to(vae, torch.float32)  # diffusers' own `to` warns of what is meant here
        try:
            yield
        finally:
            nn.Module.to(vae, torch.float16)

    @torch.no_grad()
    def _encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        vae: Any = self.pipeline.vae
        image = pixels[None].to(vae.device, vae.dtype) / 127.5 - 1
        moments = vae.encode(image).latent_dist
        return moments.mean[0].cpu(), moments.std[0].cpu()

    def _text_parts(self) -> list[tuple[Any, Any]]:
        names = [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")]
        parts = [(getattr(self.pipeline, model, None), getattr(self.pipeline, words, None)) for model, words in names]
        return [(model, words) for model, words in parts if model is not None]
