"""Numbers of pictures, one for each picture: against a reference picture by picture, or of the picture alone.

Pictures are N x 3 x height x width, float32 in [0, 1]; results are N numbers in float64.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Numbers = NDArray[np.float64]

_BANDS = 3
_FLOOR = 1e-3
"""Contrast below which a band counts as empty: a quarter of a grey level."""
_LUMA = (0.299, 0.587, 0.114)
_CHUNK = 32


def psnr(pictures: Tensor, references: Tensor) -> Numbers:
    """Peak signal-to-noise ratio in dB; infinite for equal pictures."""
    error = (pictures - references).double().square().mean((1, 2, 3))
    return _numbers(-10 * error.log10())


def ssim(pictures: Tensor, references: Tensor) -> Numbers:
    """Structural similarity (Wang et al. 2004), 11 x 11 Gaussian window of torchmetrics."""
    from torchmetrics.functional.image import structural_similarity_index_measure as similarity

    parts = [
        similarity(one, other, data_range=1.0, reduction="none")
        for one, other in zip(torch.split(pictures, _CHUNK), torch.split(references, _CHUNK), strict=True)
    ]
    return _numbers(torch.cat([torch.as_tensor(part).reshape(-1) for part in parts]))


def texture(pictures: Tensor) -> Tensor:
    """What can be said of pictures without learned features: N x (3 (bands + 2)), float64.

    By channel: the logarithm of the contrast in each of three octaves, from the finest, of a Laplacian pyramid (Burt and
    Adelson 1983), that of the whole, and the mean. Blur empties the fine bands, an over-strong adapter fills them.
    """
    found, level = [], pictures
    for _ in range(_BANDS):
        coarse = F.avg_pool2d(level, 2, ceil_mode=True)
        back = F.interpolate(coarse, level.shape[-2:], mode="bilinear", align_corners=False)
        found.append((level - back).square().mean((2, 3)).sqrt().clamp(min=_FLOOR).log())
        level = coarse
    found.append(pictures.std((2, 3)).clamp(min=_FLOOR).log())
    found.append(4 * pictures.mean((2, 3)))
    return torch.cat(found, 1).double()


def apart(features: Tensor, references: Tensor) -> Numbers:
    """Root mean square difference of two pictures' features."""
    return _numbers((features - references).square().mean(1).sqrt())


def sharpness(pictures: Tensor) -> Numbers:
    """Variance of the Laplacian of the luma, in grey levels squared (Pech-Pacheco et al. 2000)."""
    luma = (pictures * pictures.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True) * 255
    kernel = pictures.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    return _numbers(F.conv2d(luma, kernel).double().flatten(1).var(1))


def saturation(pictures: Tensor) -> Numbers:
    """Mean saturation, as in HSV: (max - min) / max over the channels."""
    high, low = pictures.amax(1), pictures.amin(1)
    return _numbers(((high - low) / high.clamp(min=1 / 255)).double().mean((1, 2)))


def kept(features: Tensor, base: Tensor, style: Tensor) -> Numbers:
    """Strength kept, from the distances to the base's and the style's features, all N x D: 0 at the base, 1 at the style.

    (‖x - b‖² - ‖x - s‖² + ‖s - b‖²) / (2 ‖s - b‖²) along the mean s - b, which by the law of cosines is the share of the
    way that x has gone; what a picture differs in otherwise, as by its noise, averages out.
    """
    way = (style - base).mean(0)
    length = way.square().sum()
    if not length > 0:
        return np.full(len(features), math.nan)
    return _numbers((features - base) @ way / length)


def _numbers(values: Tensor) -> Numbers:
    return values.detach().double().cpu().numpy()
