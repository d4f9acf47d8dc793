"""A base model as people name it: a diffusers folder, a single file, a Hub id, or a pipeline that is live already.

The rule: it is loaded when something first needs it, and once, whatever looks at it afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lorahub.validate.pipelines import live_fit, load_pipeline

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from lorahub.validate.cells import Wanted
    from lorahub.validate.fitting import Fit

    Given: TypeAlias = "str | Path | DiffusionPipeline | BaseModel"


@dataclass
class BaseModel:
    """device: `auto`, `cpu`, `cuda` or `cuda:N`; a live pipeline stays where it is. pixels: of one picture, None for the
    pipeline's own. config: folder with the configuration that belongs to a single file.
    """

    given: str | Path | DiffusionPipeline
    device: str = "auto"
    pixels: int | None = None
    config: str | Path | None = None

    @cached_property
    def loaded(self) -> tuple[DiffusionPipeline, Fit]:
        """The pipeline, and how it is to be placed. Raises what `load_pipeline` raises."""
        if isinstance(self.given, (str, Path)):
            return load_pipeline(self.given, self.device, self.pixels, config=self.config)
        return self.given, live_fit(self.given, self.pixels or _own_pixels(self.given))

    @property
    def is_live(self) -> bool:
        """Whether the caller has the pipeline too, and decides where it is."""
        return not isinstance(self.given, (str, Path))

    @property
    def name(self) -> str:
        """What was given, or what a live pipeline says of its origin."""
        if isinstance(self.given, (str, Path)):
            return str(self.given)
        return str(getattr(self.given.config, "_name_or_path", "") or type(self.given).__name__)


def base_model(
    given: Given, *, device: str = "auto", pixels: int | None = None, config: str | Path | None = None
) -> BaseModel:
    """The base model itself where it is one already, with what it was made with; else a new one."""
    return given if isinstance(given, BaseModel) else BaseModel(given, device, pixels, config)


def pixels_of(wanted: Wanted | None) -> int | None:
    """Of one picture, where the wish says; a side that is not said is as long as the other."""
    if wanted is None or not (wanted.height or wanted.width):
        return None
    return (wanted.height or wanted.width or 0) * (wanted.width or wanted.height or 0)


def _own_pixels(pipe: Any) -> int:
    model = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    size = getattr(getattr(model, "config", None), "sample_size", None) or getattr(pipe, "default_sample_size", None)
    return int((size * pipe.vae_scale_factor) ** 2) if isinstance(size, int) else 1024**2
