"""LPIPS: how different two pictures look, from the layers of an AlexNet (Zhang et al., arXiv 1801.03924).

The rule: AlexNet's own weights are the user's, torchvision's file of them; the weights of its channels, which the paper's
authors fitted, come with torchmetrics. Neither torchvision nor the network is needed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lorahub.errors import FileFormatError, NotFoundError

ALEXNET = "alexnet-owt-7be5be79.pth"
"""torchvision's name for the weights, in the folder `checkpoints` of torch's cache."""
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""ImageNet's mean and deviation, for pictures in [-1, 1]."""
_CONVOLUTIONS = {
    0: (3, 64, 11, 4, 2),
    3: (64, 192, 5, 1, 2),
    6: (192, 384, 3, 1, 1),
    8: (384, 256, 3, 1, 1),
    10: (256, 256, 3, 1, 1),
}
"""Place among AlexNet's features -> channels in and out, kernel, stride, padding (Krizhevsky, arXiv 1404.5997)."""
_POOLED = (3, 6)
"""Before these the picture is halved."""
_CHUNK = 4
SMALLEST = 31
"""Pixels of a side; of a smaller picture the last layers see nothing."""


class Lpips(nn.Module):
    """Pictures and references, N x 3 x H x W in [0, 1], to N distances. Raises RuntimeError for weights of another shape."""

    def __init__(self, alexnet: dict[str, Tensor], heads: dict[str, Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(*sizes) for sizes in _CONVOLUTIONS.values())
        for layer, place in zip(self.layers, _CONVOLUTIONS, strict=True):
            layer.load_state_dict({part: alexnet[f"features.{place}.{part}"].float() for part in ("weight", "bias")})
        self.heads = [heads[f"lin{place}.model.1.weight"].float() for place in range(len(_CONVOLUTIONS))]

    @torch.no_grad()
    def forward(self, pictures: Tensor, references: Tensor) -> Tensor:
        parts = zip(torch.split(pictures, _CHUNK), torch.split(references, _CHUNK), strict=True)
        return torch.cat([self._distances(*part) for part in parts])

    def _distances(self, pictures: Tensor, references: Tensor) -> Tensor:
        distances = pictures.new_zeros(len(pictures))
        for one, other, head in zip(self._seen(pictures), self._seen(references), self.heads, strict=True):
            distances += (head * (one - other).square()).sum(1).mean((1, 2))
        return distances

    def _seen(self, pictures: Tensor) -> list[Tensor]:
        """What each layer answers, its channels scaled to length 1 at every place."""
        shift, scale = (pictures.new_tensor(each).view(1, 3, 1, 1) for each in (_SHIFT, _SCALE))
        level, found = (2 * pictures - 1 - shift) / scale, []
        for place, layer in zip(_CONVOLUTIONS, self.layers, strict=True):
            if place in _POOLED:
                level = nn.functional.max_pool2d(level, 3, 2)
            level = layer(level).relu()
            found.append(level / (level.square().sum(1, keepdim=True) + 1e-8).sqrt())
        return found


def find_lpips(weights: Path | None) -> tuple[Lpips | None, str]:
    """(the network, why it cannot be had). weights: torchvision's AlexNet; None looks for it in torch's cache.

    Raises NotFoundError and FileFormatError for a file that was given and cannot be used.
    """
    cached = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    if weights is None and not cached.is_file():
        return None, f"no weights of AlexNet were given, and torch's cache has none at {cached}"
    place = weights or cached
    if not place.is_file():
        raise NotFoundError(f"no such file of AlexNet's weights: {place}")
    try:
        return Lpips(_read(place), _heads()), ""
    except Exception as error:  # a pickle can hold anything
        raise FileFormatError(
            f"{place} does not hold AlexNet's features as torchvision writes them: {type(error).__name__}: "
            f"{(str(error).splitlines() or [''])[0]}"
        ) from error


def _read(place: Path) -> dict[str, Tensor]:
    if place.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(place)
    return dict(torch.load(place, map_location="cpu", weights_only=True))


def _heads() -> dict[str, Tensor]:
    import torchmetrics.functional.image.lpips as published

    return _read(Path(str(published.__file__)).parent / "lpips_models" / "alex.pth")
