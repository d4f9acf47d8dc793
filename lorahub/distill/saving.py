"""From trained networks to a vector, and from the vector to a file that has been loaded back and compared.

The rule: what `load_lora_weights` makes of the file must answer as the trained network did, or nothing is reported.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorahub.algebra.adapter import Adapter
from lorahub.algebra.dense import leading
from lorahub.algebra.lowrank import LowRank
from lorahub.algebra.recipe import Source
from lorahub.bases import library
from lorahub.bases.live import tables
from lorahub.distill.conditioning import Conditioning
from lorahub.distill.models import ADAPTER, denoise
from lorahub.distill.settings import Settings
from lorahub.errors import VerificationError
from lorahub.files.probe import distance
from lorahub.files.saving import Saved, save
from lorahub.files.store import replacing
from lorahub.formats.encode import UNLISTED_DOTTED
from lorahub.pipeline import detach, read_adapter
from lorahub.quiet import quiet

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_CHECK = "lorahub_check"

_ROUNDING = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
"""Share of the vector, and of its effect, that rounding to the file's dtype may take."""

_NOISE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Share of its size by which an answer of a U-Net in this dtype is uncertain."""


@dataclass(frozen=True)
class Probe:
    """An input of the U-Net and what the trained one answered to it."""

    x: Tensor
    t: Tensor
    c: Conditioning
    answer: Tensor


def probe(unet: Any, latents: Tensor, c: Conditioning) -> Probe:
    """The answer of `unet` for one sample, at a timestep in the middle."""
    c = c.map(lambda tensor: tensor[:1])
    t = torch.full((1,), 499, device=latents.device)
    x = torch.randn(latents[:1].shape, generator=torch.Generator().manual_seed(0)).to(latents.device)
    with torch.no_grad():
        return Probe(x, t, c, denoise(unet, x, t, c))


def base_of(unet: Any) -> str | None:
    """The listed base whose U-Net has the layers of this one, if any."""
    layers, _, _ = tables(unet)
    for name in library.names():
        component = library.get(name).components.get("unet")
        if component is not None and component.layers == layers:
            return name
    return None


def trained_adapter(pipeline: DiffusionPipeline, base: str | None, settings: Settings) -> Adapter:
    """The LoRA that is being trained on the pipeline, as a vector."""
    return _described(read_adapter(pipeline, ADAPTER, base=base), settings)


def difference(trained: Any, base: Any, name: str | None, settings: Settings) -> Adapter:
    """The vector from one U-Net to another of the same layers, each `targets` layer cut to `rank` (`algebra.dense`).

    What no LoRA holds (biases, normalisations) and the layers that are not targets are left out.
    """
    before = dict(base.named_modules())
    layers = {}
    for module, layer in trained.named_modules():
        weight = getattr(layer, "weight", None)
        if weight is None or weight.ndim < 2 or not _is_target(module, settings.targets):
            continue
        delta = (weight.detach().float() - before[module].weight.detach().float()).flatten(1)
        found = leading(delta, lambda sigma: settings.rank)
        if len(found.sigma):
            layers[f"unet.{module}"] = LowRank.of(found.up.cpu(), found.down.cpu(), shape=tuple(weight.shape))
    return _described(Adapter(name or UNLISTED_DOTTED, layers), settings)


def _is_target(module: str, targets: tuple[str, ...]) -> bool:
    """As peft matches: the name, or its end after a dot."""
    return any(module == target or module.endswith(f".{target}") for target in targets)


def _described(adapter: Adapter, settings: Settings) -> Adapter:
    """The adapter with its training settings where trainers write theirs, so that they end up in the file's metadata."""
    title = settings.name or Path(settings.output).stem or f"{settings.mode} distillation"
    metadata = {
        "modelspec.title": title,
        "ss_base_model_version": adapter.base,
        "ss_learning_rate": f"{settings.learning_rate:g}",
        "ss_max_train_steps": str(settings.steps),
        "ss_seed": str(settings.seed),
        "ss_optimizer": settings.optimizer,
        "ss_lorahub_training": json.dumps(settings.training(), sort_keys=True),
    }
    return replace(adapter, recipe=Source(title, metadata=metadata))


def save_checked(pipeline: DiffusionPipeline, adapter: Adapter, expected: Probe, settings: Settings) -> Saved:
    """Write the vector in diffusers' spelling, load it back into the pipeline, compare, and only then give it its name.

    expected: what the trained network answers. Raises ConflictError when the file exists and `force` is off,
    VerificationError when the file is not that network; then nothing is written.
    """
    target = Path(settings.output)
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(target, force=settings.force) as temporary,
        TemporaryDirectory(dir=target.parent, prefix=f".{target.stem}.") as folder,
    ):
        written = Path(folder) / "adapter.safetensors"
        saved = save(adapter, written, format="diffusers", dtype=settings.dtype)
        with quiet():  # of its notice that there is nothing for the text encoders
            pipeline.load_lora_weights(folder, weight_name=written.name, adapter_name=_CHECK)
        try:
            _compare(pipeline, adapter, expected, settings)
        finally:
            detach(pipeline, _CHECK)
        written.rename(temporary)
    return replace(saved, path=target)


def _compare(pipeline: DiffusionPipeline, adapter: Adapter, expected: Probe, settings: Settings) -> None:
    """Raises VerificationError unless the loaded adapter has the vector's weights and the network's answer."""
    rounding, noise = _ROUNDING[settings.dtype], _NOISE[pipeline.unet.dtype]
    base = None if adapter.base == UNLISTED_DOTTED else adapter.base
    apart = distance(adapter, read_adapter(pipeline, _CHECK, base=base)).relative
    if not apart <= rounding + noise:  # the factors took the U-Net's dtype too
        raise VerificationError(f"the saved file, loaded back, differs from the vector by {apart:.2g} of its size")
    answer = _answer(pipeline.unet, expected)
    pipeline.unet.disable_adapters()
    effect = expected.answer - _answer(pipeline.unet, expected)
    error = float((answer - expected.answer).norm())
    if not error <= 5 * rounding * float(effect.norm()) + noise * float(expected.answer.norm()):
        share = error / max(float(effect.norm()), 1e-30)
        raise VerificationError(f"the saved file, loaded back, misses the trained network by {share:.2g} of its effect")


@torch.no_grad()
def _answer(unet: Any, probe: Probe) -> Tensor:
    return denoise(unet, probe.x, probe.t, probe.c)
