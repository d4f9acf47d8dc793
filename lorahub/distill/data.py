"""From the `[data]` table of a TOML file to a source of training batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorahub.distill.caching import Cache
from lorahub.distill.checked import Checked, setting, within
from lorahub.distill.conditioning import Batch as Batch, Source as Source
from lorahub.distill.data_dataset import HubDataset
from lorahub.distill.data_encoding import Encoder
from lorahub.distill.data_folder import Folder
from lorahub.distill.data_pictures import Pictures
from lorahub.distill.data_shards import Shards
from lorahub.distill.data_sources import Drawing, Order, PictureSource, Progress, PromptSource
from lorahub.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_PLACES = ("folder", "dataset", "shards", "prompts")


@dataclass(frozen=True, kw_only=True)
class DataSettings(Checked):
    """What to train on: exactly one of folder, dataset, shards and prompts, and how to make pictures of it."""

    folder: str = setting("", "images at any depth, with captions in metadata.jsonl or .txt files beside them")
    dataset: str = setting("", "a dataset of the Hugging Face Hub, or a folder that `datasets` reads")
    shards: str = setting("", "webdataset tar files; {000..012} and * are expanded")
    prompts: str = setting("", "a text file with a prompt a line, for which the pipeline itself draws the pictures")

    prompt: str = setting("", "the caption of images that have none")
    resolution: int = setting(
        0, within(0, 65536, "side in pixels of the square cut out; 0: what the base was made for")
    )
    flip: bool = setting(False, "mirror every other picture at random")
    cache: str = setting("", "folder that keeps latents and encoded prompts; empty: made again at every step")
    split: str = setting("train", "of the dataset")
    revision: str = setting("", "of the dataset on the Hub; empty: the newest")
    image_column: str = setting("", "of the dataset; empty: the one that holds images")
    caption_column: str = setting("", "of the dataset, metadata.jsonl or json captions; empty: text, caption or prompt")
    draw_steps: int = setting(30, within(1, 1000, "steps of a drawing for a prompt"))
    draw_guidance_scale: float = setting(7.5, within(0, 1000, "guidance scale of the drawings"))
    draws_per_prompt: int = setting(1, within(1, 10**6, "drawings for each prompt"))

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in _PLACES if getattr(self, name)]
        if len(given) != 1:
            raise UsageError(f"[data]: expected one of {', '.join(_PLACES)}, got {' and '.join(given) or 'none'}")
        if self.prompts and self.flip:
            raise UsageError("flip: drawings for prompts are not mirrored, leave it out")


def open_source(
    table: Mapping[str, Any],
    pipeline: DiffusionPipeline,
    *,
    batch_size: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> PictureSource | PromptSource:
    """The source that a `[data]` table describes (its keys are those of `DataSettings`), with its cache filled.

    seed: of the order, flips, latents and drawings. Under `accelerate launch` each process fills its share of the cache
    and waits for the others; the batches are one stream, whose numbers the processes take in turn. `progress` takes
    (done, in all, "pictures" or "drawings") while the cache is filled.
    Raises UsageError for settings that fit neither data nor pipeline, NotFoundError for missing data, FileFormatError for
    a broken image, NetworkError when the Hub cannot be reached.
    """
    from accelerate import PartialState

    settings = DataSettings.of(table)
    processes = PartialState()
    encoder = Encoder(pipeline, Cache(Path(settings.cache)) if settings.cache else None)
    resolution = _resolution(settings.resolution, pipeline)
    source: PictureSource | PromptSource
    if settings.prompts:
        prompts = _read_prompts(Path(settings.prompts))
        count = len(prompts) * settings.draws_per_prompt
        drawing = Drawing(resolution, settings.draw_steps, settings.draw_guidance_scale, settings.draws_per_prompt)
        source = PromptSource(prompts, encoder, Order(count, batch_size, seed), drawing)
    else:
        pictures = _pictures(settings)
        order = Order(len(pictures), batch_size, seed)
        source = PictureSource(pictures, encoder, order, resolution=resolution, flip=settings.flip)
    source.prepare(processes.process_index, processes.num_processes, progress)
    processes.wait_for_everyone()
    if encoder.cache is not None:
        encoder.cache.refresh()
    return source


def _pictures(settings: DataSettings) -> Pictures:
    column, prompt = settings.caption_column or None, settings.prompt or None
    if settings.folder:
        return Folder(Path(settings.folder), caption_column=column, prompt=prompt)
    if settings.shards:
        return Shards(settings.shards, caption_column=column, prompt=prompt)
    return HubDataset(
        settings.dataset,
        split=settings.split,
        revision=settings.revision or None,
        image_column=settings.image_column or None,
        caption_column=column,
        prompt=prompt,
    )


def _read_prompts(path: Path) -> list[str]:
    if not path.is_file():
        raise NotFoundError(f"no such file of prompts: {path}")
    prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not prompts:
        raise UsageError(f"{path} holds no prompt: write one on each line")
    return prompts


def _resolution(wanted: int, pipeline: DiffusionPipeline) -> int:
    factor = int(pipeline.vae_scale_factor)
    if not wanted:
        return int(pipeline.unet.config.sample_size) * factor
    if wanted % factor:
        raise UsageError(f"resolution: expected a multiple of {factor}, the VAE's factor, got {wanted}")
    return wanted
