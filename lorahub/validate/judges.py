"""Networks that score pictures, where they are at hand; where one is not, the reason is the answer. Nothing is downloaded."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lorahub.errors import FileFormatError, NotFoundError
from lorahub.validate.measures import Numbers

_CHUNK = 16
_ALEXNET = "alexnet-owt-7be5be79.pth"


@dataclass(frozen=True)
class Judges:
    """features: maps uint8 pictures, N x 3 x H x W, to N x D features. clip: (model, processor) of transformers.

    lpips: pictures, references -> distances. reasons: for each that is missing, why, by the score's name.
    """

    features: Callable[[Tensor], Tensor] | None = None
    clip: tuple[Any, Any] | None = None
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None
    reasons: dict[str, str] = field(default_factory=dict)

    @torch.no_grad()
    def see(self, pictures: Tensor) -> Tensor:
        """The features of pictures in [0, 1], N x D in float64."""
        assert self.features is not None
        found = [self.features((part * 255).round().byte()) for part in torch.split(pictures, _CHUNK)]
        return torch.cat([part.flatten(1) for part in found]).double().cpu()

    @torch.no_grad()
    def clip_scores(self, pictures: Tensor, prompts: Sequence[str]) -> Numbers:
        """100 times the cosine of picture and prompt, at least 0, for each picture (Hessel et al., arXiv 2104.08718)."""
        from torchmetrics.functional.multimodal import clip_score

        assert self.clip is not None
        model, processor = self.clip
        whole = (pictures * 255).round().byte()
        pairs = zip(whole, prompts, strict=True)
        return np.array([float(clip_score(one, text, lambda: (model, processor))) for one, text in pairs])


def find_judges(features: str | Path | nn.Module | None = None, clip: str | Path | None = None) -> Judges:
    """What is at hand.

    features: a program of torch.export (`.pt2`), a TorchScript file (such as StyleGAN's `inception-2015-12-05.pt`), or a
    module. clip: a folder of transformers' CLIP. LPIPS is had when torchvision's AlexNet is in torch's cache already.
    Raises NotFoundError and FileFormatError for what was given and cannot be loaded.
    """
    reasons = {}
    if features is None:
        reasons["features"] = "cannot be had: no feature model was given"
    if clip is None:
        reasons["clip"] = "cannot be had: no folder of a CLIP model was given"
    lpips, missing = _lpips()
    if missing:
        reasons["lpips"] = f"cannot be had: {missing}"
    loaded = _features(Path(features)) if isinstance(features, (str, Path)) else features
    return Judges(loaded, None if clip is None else _clip(Path(clip)), lpips, reasons)


def frechet(one: Tensor, other: Tensor) -> float:
    """Fréchet distance of two sets of features, N x D and M x D (Heusel et al., arXiv 1706.08500, eq. 6)."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Given(one.shape[1]))
    metric.set_dtype(torch.float64)
    metric.update(one, real=True)
    metric.update(other, real=False)
    return float(metric.compute())


def quick_frechet(one: Tensor, other: Tensor) -> float:
    """The same distance without a covariance matrix, for resampling; float64.

    With A and B the centred features over sqrt(N - 1), the trace of (AᵀA BᵀB)^(1/2) is the nuclear norm of A Bᵀ.
    """
    shift = one.mean(0) - other.mean(0)
    left, right = ((part - part.mean(0)) / (len(part) - 1) ** 0.5 for part in (one, other))
    root = torch.linalg.svdvals(left @ right.T).sum()
    return float(shift @ shift + left.square().sum() + right.square().sum() - 2 * root)


class _Given(nn.Module):
    """Features that are there already."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.num_features = count

    def forward(self, features: Tensor) -> Tensor:
        return features


def _features(path: Path) -> Callable[[Tensor], Tensor]:
    if not path.is_file():
        raise NotFoundError(f"no such feature model: {path}")
    found: Callable[[Tensor], Tensor]
    try:
        if path.suffix == ".pt2":
            found = torch.export.load(path).module()
        else:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", DeprecationWarning
                )  # torch prefers .pt2; published files are TorchScript
                load: Any = torch.jit.load
                found = load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise FileFormatError(f"{path} is no program of torch: {str(error).splitlines()[0]}") from error
    return found


def _clip(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoProcessor, CLIPModel

    if not folder.is_dir():
        raise NotFoundError(f"no such CLIP folder: {folder}")
    try:
        model = CLIPModel.from_pretrained(str(folder), local_files_only=True).eval()
        return model, AutoProcessor.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{folder} holds no CLIP model: {str(error).splitlines()[0]}") from error


def _lpips() -> tuple[Callable[[Tensor, Tensor], Tensor] | None, str]:
    """(distances of pictures in [0, 1], why they cannot be had)."""
    if importlib.util.find_spec("torchvision") is None:
        return None, "LPIPS needs torchvision"
    weights = Path(torch.hub.get_dir()) / "checkpoints" / _ALEXNET
    if not weights.is_file():
        return None, f"LPIPS needs the AlexNet of torchvision at {weights}"
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    metric = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)

    @torch.no_grad()
    def distances(pictures: Tensor, references: Tensor) -> Tensor:
        pairs = zip(torch.split(pictures, 1), torch.split(references, 1), strict=True)
        return torch.stack([metric(one, other) for one, other in pairs])

    return distances, ""
