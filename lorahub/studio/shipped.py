"""Where trained weights lie, and how they become live objects: those that ship with lorahub, or those of a build.

The rule: a folder of weights holds `pipeline/` (an ordinary diffusers folder), `vectors/NAME.safetensors` and
`scorer.safetensors`. On disk they are fp16, but for the text encoder, which transformers loads in the dtype of its
file; in memory all is float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lorahub.errors import NotFoundError
from lorahub.quiet import quiet
from lorahub.studio import styles
from lorahub.studio.scoring import Scorer

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

SHIPPED = Path(__file__).parent / "weights"
LCM = "lcm"
"""Name of the acceleration vector; the others are those of `styles.STYLES`."""


def load(folder: Path = SHIPPED) -> StableDiffusionPipeline:
    """The tiny pipeline in float32 on the CPU. Raises NotFoundError when the folder has none."""
    place = _existing(folder / "pipeline")
    with quiet():
        from diffusers import StableDiffusionPipeline

        pipe = StableDiffusionPipeline.from_pretrained(place, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def path(name: str, folder: Path = SHIPPED) -> Path:
    """The file of a vector: `lcm`, or a style. Raises NotFoundError for a name that is none."""
    names = (LCM, *styles.STYLES)
    if name not in names:
        raise NotFoundError(f"the studio has no vector {name!r}: it has {', '.join(names)}")
    return _existing(folder / "vectors" / f"{name}.safetensors")


def scorer(folder: Path = SHIPPED) -> Scorer:
    """The network that scores pictures, in float32."""
    from safetensors.torch import load_file

    model = Scorer()
    model.load_state_dict(
        {key: value.float() for key, value in load_file(_existing(folder / "scorer.safetensors")).items()}
    )
    return model.eval()


def _existing(place: Path) -> Path:
    if not place.exists():
        raise NotFoundError(
            f"{place} is missing: make the studio's weights with `lorahub studio build --output FOLDER`"
        )
    return place
