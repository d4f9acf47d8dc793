"""Networks that score pictures, where they are at hand; where one is not, the reason is the answer. Nothing is downloaded."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorahub.errors import FileFormatError, LorahubError, NotFoundError
from lorahub.validate.measures import Numbers
from lorahub.validate.perceptual import find_lpips

_CHUNK = 16


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
        """100 times the cosine of picture and prompt, at least 0, for each picture (Hessel et al., arXiv 2104.08718).

        Prompts are cut to the length that the model takes.
        """
        # torchmetrics' own function does not take what transformers 5 gives it.
        assert self.clip is not None
        model, processor = self.clip
        length = model.config.text_config.max_position_embeddings
        found = []
        for start in range(0, len(pictures), _CHUNK):
            whole = (pictures[start : start + _CHUNK] * 255).round().byte()
            words = {"text": list(prompts[start : start + _CHUNK]), "truncation": True, "max_length": length}
            seen = model(**processor(images=list(whole), padding=True, return_tensors="pt", **words))
            found.append(torch.cosine_similarity(seen.image_embeds, seen.text_embeds))
        return (100 * torch.cat(found).clamp(min=0)).double().numpy()


def find_judges(
    features: str | Path | nn.Module | None = None, clip: str | Path | None = None, lpips: str | Path | None = None
) -> Judges:
    """What is at hand.

    features: a program of torch.export (`.pt2`), a TorchScript file (such as StyleGAN's `inception-2015-12-05.pt`), or a
    module. clip: a folder of transformers' CLIP. lpips: torchvision's file of AlexNet's weights, which is also found in
    torch's cache.
    Raises NotFoundError and FileFormatError for what was given and cannot be loaded, LorahubError when torchmetrics, which
    scores, is missing.
    """
    if importlib.util.find_spec("torchmetrics") is None:
        raise LorahubError("scoring pictures needs torchmetrics: pip install 'lorahub-toolkit[validate]'")
    reasons = {}
    if features is None:
        reasons["features"] = "cannot be had: no feature model was given"
    if clip is None:
        reasons["clip"] = "cannot be had: no folder of a CLIP model was given"
    network, missing = find_lpips(None if lpips is None else Path(lpips))
    if missing:
        reasons["lpips"] = f"cannot be had: {missing}"
    loaded = _features(Path(features)) if isinstance(features, (str, Path)) else features
    return Judges(loaded, None if clip is None else _clip(Path(clip)), network, reasons)


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
