"""Pictures with captions, wherever they lie, and their way to the square of pixels that the VAE takes.

The rule: a picture is its bytes; what is made of it depends on them and on the resolution, and on nothing else.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lorahub.errors import FileFormatError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
CAPTION_NAMES = ("text", "caption", "prompt")
"""What the caption is called where nobody says, in this order: in `metadata.jsonl`, data sets and shards' json."""


@dataclass(frozen=True)
class Picture:
    """An encoded image with its caption; `name` is where it came from, for messages."""

    name: str
    data: bytes
    caption: str


class Pictures(Protocol):
    """Pictures that can be had by number, always in the same order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Picture: ...


@dataclass(frozen=True)
class Cropped:
    """A square of pixels [3, R, R], uint8, with what was done to get it."""

    pixels: Tensor
    original: tuple[int, int]
    """Height and width of the image before it was resized."""
    corner: tuple[int, int]
    """Top and left of the square in the resized image."""


def crop(picture: Picture, resolution: int) -> Cropped:
    """Upright (EXIF), on white where it is transparent, the shorter side made `resolution` pixels, the middle cut out.

    Raises FileFormatError, which names the picture, when the bytes are no whole image.
    """
    try:
        image = Image.open(io.BytesIO(picture.data))
        image.load()
    except UnidentifiedImageError:
        raise FileFormatError(f"{picture.name} is not an image that can be read: mend it or take it out") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FileFormatError(f"{picture.name} is a damaged image ({error}): mend it or take it out") from None
    upright = _rgb(ImageOps.exif_transpose(image))
    width, height = upright.size
    scale = resolution / min(width, height)
    size = (max(resolution, round(width * scale)), max(resolution, round(height * scale)))
    left, top = (size[0] - resolution) // 2, (size[1] - resolution) // 2
    square = upright.resize(size, Image.Resampling.LANCZOS).crop((left, top, left + resolution, top + resolution))
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()
    return Cropped(pixels, (height, width), (top, left))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # 16 bits of grey, which PIL would clip instead of scaling
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
