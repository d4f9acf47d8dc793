"""Find LoRA adapters on the Hub that fit a base model."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from huggingface_hub import HfApi

from lorahub import bases
from lorahub.bases import declared
from lorahub.hub.errors import translated


@dataclass(frozen=True)
class Hit:
    """One repository; `base` is the listed base it says it is for, None for another."""

    repo: str
    base: str | None
    base_model: str | None
    downloads: int
    likes: int
    licence: str | None
    trigger_words: str | None
    modified: datetime | None


def search(query: str, *, base: str | None = None, limit: int = 20) -> tuple[Hit, ...]:
    """Repositories tagged as LoRAs in whose names the query is found, the most downloaded first.

    base: only those that say they are adapters of this base; every repository that the base is known by is asked for.
    Raises NetworkError and AuthError as the Hub answers.
    """
    filters = [["lora", f"base_model:adapter:{id}"] for id in bases.get(base).hub_ids] if base else [["lora"]]
    with translated("search"):
        answers = [[*_found(query, wanted, limit)] for wanted in filters]
    merged = heapq.merge(*answers, key=lambda hit: -hit.downloads)
    return tuple({hit.repo: hit for hit in merged}.values())[:limit]


def _found(query: str, wanted: list[str], limit: int) -> Iterator[Hit]:
    for model in HfApi().list_models(search=query or None, filter=wanted, sort="downloads", limit=limit, cardData=True):
        card = model.card_data.to_dict() if model.card_data else {}  # type: ignore[no-untyped-call]
        base_model = next(_base_models(model.tags or (), card), None)
        claim = declared.read({"base_model": base_model}) if base_model else None
        yield Hit(
            model.id,
            claim.base if claim else None,
            base_model,
            model.downloads or 0,
            model.likes or 0,
            str(card["license"]) if card.get("license") else None,
            str(card["instance_prompt"]) if card.get("instance_prompt") else None,
            model.last_modified,
        )


def _base_models(tags: Iterable[str], card: Mapping[str, Any]) -> Iterator[str]:
    yield from (tag.removeprefix("base_model:adapter:") for tag in tags if tag.startswith("base_model:adapter:"))
    stated = card.get("base_model")
    yield from [stated] if isinstance(stated, str) else [str(each) for each in stated or ()]
