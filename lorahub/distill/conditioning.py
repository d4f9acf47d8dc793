"""What a U-Net is told besides the noisy latents: encoded prompts, and for SDXL their pooled form and the image sizes.

The rule: what a pipeline needs is read off the pipeline (a second text encoder means pooled embeddings and time ids),
never off the name of its base.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from lorahub.errors import UsageError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

UNCONDITIONAL = ("zeros", "empty")


@dataclass(frozen=True)
class Conditioning:
    """The condition c of a batch of B samples: T tokens of width D; pooled and time_ids only where the U-Net asks for them.

    time_ids: original height and width, crop top and left, target height and width, in pixels (SDXL, section 2.2).
    """

    prompt_embeds: Tensor
    """[B, T, D]"""
    pooled: Tensor | None = None
    """[B, P]"""
    time_ids: Tensor | None = None
    """[B, 6]"""

    def __len__(self) -> int:
        return len(self.prompt_embeds)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Conditioning:
        """The same on another device, in another floating-point dtype."""
        return self.map(lambda tensor: tensor.to(device, dtype))

    def map(self, function: Callable[[Tensor], Tensor]) -> Conditioning:
        """The function applied to every tensor that is there (to select samples, say)."""
        return Conditioning(
            function(self.prompt_embeds),
            None if self.pooled is None else function(self.pooled),
            None if self.time_ids is None else function(self.time_ids),
        )

    def repeated(self, like: Conditioning) -> Conditioning:
        """This condition of one sample for every sample of `like`, with the time ids of `like`."""
        size = len(like)
        pooled = None if self.pooled is None else self.pooled.expand(size, -1)
        return Conditioning(self.prompt_embeds.expand(size, -1, -1), pooled, like.time_ids)

    def where(self, mask: Tensor, other: Conditioning) -> Conditioning:
        """Sample by sample: this where `mask` [B] (bool) is true, `other` elsewhere; time ids are those of this."""
        pooled = None
        if self.pooled is not None and other.pooled is not None:
            pooled = torch.where(mask[:, None], self.pooled, other.pooled)
        return Conditioning(
            torch.where(mask[:, None, None], self.prompt_embeds, other.prompt_embeds), pooled, self.time_ids
        )


@dataclass(frozen=True)
class Batch:
    """B training samples: latents z = scaling_factor * vae(x) [B, C, h, w], and their condition."""

    latents: Tensor
    conditioning: Conditioning


class Source(Protocol):
    """An endless, seeded stream of batches."""

    def at(self, step: int) -> Batch:
        """The batch number `step` (from 0): a pure function of the seed and `step`, so that a run can be resumed."""
        ...


def has_pooled(pipeline: DiffusionPipeline) -> bool:
    """Whether the pipeline conditions on pooled embeddings and time ids, as SDXL and its descendants do."""
    return getattr(pipeline.unet.config, "addition_embed_type", None) == "text_time"


@torch.no_grad()
def encode_prompts(
    pipeline: DiffusionPipeline, prompts: Sequence[str], sizes: Sequence[Sequence[int]] | None = None
) -> Conditioning:
    """The condition that the pipeline itself would make of these prompts, without guidance.

    sizes: for each prompt the six time ids (original height and width, crop top and left, target height and width); by
    default an uncropped image of the size the pipeline was made for. Ignored where the U-Net has none.
    Raises UsageError when the pipeline has no text encoder or tokenizer.
    """
    if pipeline.tokenizer is None or pipeline.text_encoder is None:
        raise UsageError("the pipeline has no text encoder or tokenizer: load it whole, or give encoded prompts")
    encoder: Any = pipeline.text_encoder
    texts = list(prompts)
    if not has_pooled(pipeline):
        embeds, _ = pipeline.encode_prompt(texts, encoder.device, 1, do_classifier_free_guidance=False)
        return Conditioning(embeds)
    embeds, _, pooled, _ = pipeline.encode_prompt(texts, device=encoder.device, do_classifier_free_guidance=False)
    rows = [default_size(pipeline)] * len(texts) if sizes is None else [tuple(size) for size in sizes]
    return Conditioning(embeds, pooled, torch.tensor(rows, dtype=embeds.dtype, device=embeds.device))


def default_size(pipeline: DiffusionPipeline) -> tuple[int, int, int, int, int, int]:
    """The time ids of an uncropped image of the size the pipeline was made for."""
    side = int(pipeline.unet.config.sample_size) * int(pipeline.vae_scale_factor)
    return (side, side, 0, 0, side, side)


def unconditional(pipeline: DiffusionPipeline, like: Conditioning, how: str = "zeros") -> Conditioning:
    """The condition of no prompt, for a batch that is otherwise `like`; its time ids are kept.

    how: "zeros" (zero embeddings, as the SDXL scripts and SDXL itself do) or "empty" (the prompt "" encoded, as SD 1.x
    and 2.x were trained with). Raises UsageError for anything else.
    """
    if how not in UNCONDITIONAL:
        raise UsageError(f"no such unconditional embedding: {how!r}; expected one of {', '.join(UNCONDITIONAL)}")
    if how == "zeros":
        return Conditioning(
            torch.zeros_like(like.prompt_embeds),
            None if like.pooled is None else torch.zeros_like(like.pooled),
            like.time_ids,
        )
    empty = encode_prompts(pipeline, [""]).to(like.prompt_embeds.device, like.prompt_embeds.dtype)
    return empty.repeated(like)
