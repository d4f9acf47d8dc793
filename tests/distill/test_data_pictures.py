"""From the bytes of an image to a square of pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lorahub.distill.data_pictures import Picture, crop
from lorahub.errors import FileFormatError
from tests.distill.data_files import COLOURS, encoded, noise


def square(image: Image.Image, resolution: int = 8, format: str = "PNG", **options: object) -> torch.Tensor:
    return crop(Picture("it", encoded(image, format, **options), ""), resolution).pixels


def plain(colour: str, width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), COLOURS[colour])


def halves(width: int, height: int) -> Image.Image:
    """Red above, blue below."""
    image = plain("red", width, height)
    image.paste(plain("blue", width, height - height // 2), (0, height // 2))
    return image


def test_a_square_of_the_right_size_is_taken_as_it_is() -> None:
    image = noise(0, 8, 8)
    pixels = square(image)
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, torch.from_numpy(np.array(image)).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("width", "height", "corner"),
    [(40, 20, (0, 5)), (20, 40, (5, 0)), (31, 10, (0, 10)), (5, 5, (0, 0)), (1000, 3, (0, 1661))],
)
def test_the_middle_is_cut_out_and_what_was_done_is_said(width: int, height: int, corner: tuple[int, int]) -> None:
    cropped = crop(Picture("it", encoded(noise(0, width, height)), ""), 10)
    assert cropped.pixels.shape == (3, 10, 10)
    assert cropped.original == (height, width)
    assert cropped.corner == corner


def test_the_corner_is_where_the_square_lies_in_the_resized_image() -> None:
    image = noise(0, 32, 16)
    whole = torch.from_numpy(np.array(image.resize((16, 8), Image.Resampling.LANCZOS))).permute(2, 0, 1)
    cropped = crop(Picture("it", encoded(image), ""), 8)
    top, left = cropped.corner
    assert torch.equal(cropped.pixels, whole[:, top : top + 8, left : left + 8])


def test_cameras_that_were_held_askew() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = halves(8, 8).transpose(Image.Transpose.ROTATE_90)
    data = encoded(turned, "JPEG", exif=exif, quality=100)
    pixels = crop(Picture("it", data, ""), 8).pixels
    assert pixels[0, :3].min() > 200
    assert pixels[2, 5:].min() > 200
    wide = crop(Picture("it", encoded(noise(0, 40, 20), "JPEG", exif=exif), ""), 8)
    assert wide.original == (40, 20)


def test_transparency_lies_on_white() -> None:
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    half.paste((255, 0, 0, 255), (0, 0, 4, 8))
    pixels = square(half)
    assert pixels[:, :, 0].float().mean(1).tolist() == [255, 0, 0]
    assert pixels[:, :, 7].float().mean(1).tolist() == [255, 255, 255]
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 255] + [0] * 765)
    assert square(palette, transparency=0).unique().tolist() == [255]
    assert square(Image.new("LA", (8, 8), (10, 0))).unique().tolist() == [255]


def test_other_modes_become_rgb() -> None:
    assert square(Image.new("L", (8, 8), 77)).unique().tolist() == [77]
    assert square(Image.new("1", (8, 8), 1)).unique().tolist() == [255]
    assert square(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), format="TIFF").unique().tolist() == [255]
    deep = Image.fromarray(np.full((8, 8), 0x4D00, dtype=np.uint16))
    assert square(deep).unique().tolist() == [0x4D]
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    first = square(frames[0], format="WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert first[0].min() == 255  # the first frame is the red one


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.6])
def test_a_broken_image_is_named_in_one_line(format: str, part: float) -> None:
    data = encoded(noise(0), format)
    with pytest.raises(FileFormatError) as caught:
        crop(Picture("folder/one.png", data[: int(len(data) * part)], ""), 8)
    message = str(caught.value)
    assert message.startswith("folder/one.png is ")
    assert message.endswith("mend it or take it out")
    assert "\n" not in message
    assert "0x" not in message
