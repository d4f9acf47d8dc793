"""The base pipeline that pictures are drawn with: found, measured before it is loaded, placed on its device.

The rule: what a pipeline is made of is read from headers first, so that dtype and offload are chosen before a byte of
weights is in memory. A live pipeline is used as and where it is.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import torch
from huggingface_hub import errors as hub

from lorahub import header
from lorahub.checkpoints import open_checkpoint
from lorahub.errors import FileFormatError, NotFoundError, UsageError
from lorahub.files.paths import PICKLE_SUFFIXES
from lorahub.hub.errors import translated
from lorahub.quiet import quiet
from lorahub.validate.fitting import Fit, choose

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_FLOW_CLASSES = ("StableDiffusion3Pipeline", "FluxPipeline")
CLASSES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", *_FLOW_CLASSES)
"""Pipelines that pictures are drawn with."""
_OF_FILE = {"sd15": CLASSES[0], "sd2": CLASSES[0], "sdxl": CLASSES[1], "ssd-1b": CLASSES[1], "sd3": CLASSES[2]}
_OF_FILE |= {"sd35-medium": CLASSES[2], "sd35-large": CLASSES[2], "flux1": CLASSES[3]}
_VARIANTS = ("fp16", "bf16")
_ASKING = (hub.HfHubHTTPError, hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, httpx2.HTTPError)
"""What the Hub's client raises while diffusers asks it for a configuration."""
_SAMPLED = 16
"""Values of each tensor that tell one set of weights from another."""


def load_pipeline(
    base: str | Path, device: str, pixels: int | None, *, config: str | Path | None = None
) -> tuple[DiffusionPipeline, Fit]:
    """The pipeline at a path (a diffusers folder or a single file) or of a Hub repository, on the CPU, and how to place it.

    device: `auto` is CUDA where torch finds it, else the CPU. pixels: of one picture, None for what the base is made for.
    config: a diffusers folder whose configuration and tokenizers belong to the single file; without it diffusers asks the
    Hub for those of the base that the file's layers are of.
    Raises NotFoundError, FileFormatError, NetworkError, AuthError; UsageError for a pipeline that draws no pictures from
    prompts, or that does not fit the memory, or a file whose configuration must be given.
    """
    place = _found(base)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    settings = _settings_of(place, config)
    kind = _class_of(place, settings)
    if kind not in CLASSES:
        raise UsageError(f"{base}: {kind} cannot draw here: expected one of {', '.join(CLASSES)}")
    fit = choose(
        {"all": _count(place)} if place.is_file() else _components(place),
        device=device,
        memory=free_memory(device),
        pixels=pixels or _pixels(settings) or (512**2 if kind == CLASSES[0] else 1024**2),
        flow=kind in _FLOW_CLASSES,
        bf16=device == "cpu" or torch.cuda.is_bf16_supported(),
    )
    with quiet():
        return _load(place, kind, getattr(torch, fit.dtype), settings), fit


def live_fit(pipe: DiffusionPipeline, pixels: int) -> Fit:
    """How a pipeline that is live already draws: where it is, in its dtype."""
    device = pipe.device.type
    parameters = {"all": sum(p.numel() for m in _modules(pipe) for p in m.parameters())}
    batch = 1
    if device == "cpu":
        batch = choose(parameters, device="cpu", memory=free_memory("cpu") + 4 * parameters["all"], pixels=pixels).batch
    return Fit(str(pipe.device), str(pipe.dtype).removeprefix("torch."), batch=batch)


def place(pipe: DiffusionPipeline, fit: Fit) -> None:
    """Move the pipeline to its device, or hand it to accelerate, which moves its parts when they are needed."""
    if fit.sliced:
        pipe.enable_attention_slicing()
        if hasattr(pipe, "vae") and hasattr(pipe.vae, "enable_tiling"):
            pipe.vae.enable_slicing()
            pipe.vae.enable_tiling()
    if fit.offload == "model":
        pipe.enable_model_cpu_offload(device=fit.device)
    elif fit.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=fit.device)
    elif str(pipe.device) != fit.device:
        pipe.to(fit.device)


def unplace(pipe: DiffusionPipeline, fit: Fit) -> None:
    """Take offloading off again, so that adapters can be put on: the weights are then on the CPU."""
    if fit.offload != "none":
        pipe.remove_all_hooks()
        pipe.to("cpu")


def free_memory(device: str) -> int:
    """Bytes that can be had on the device; for the CPU, what the kernel says is available."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def fingerprint(pipe: DiffusionPipeline) -> str:
    """sha256 over names, shapes, dtypes and evenly spaced values of every weight, and the scheduler's settings.

    It tells checkpoints apart and takes no time; it is no proof that every weight is the same.
    """
    digest = hashlib.sha256(json.dumps(scheduler_settings(pipe.scheduler)).encode())
    for module in _modules(pipe):
        for name, weight in module.state_dict().items():
            flat = weight.detach().flatten()
            values = flat[:: max(1, flat.numel() // _SAMPLED)][:_SAMPLED].double().cpu()
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype} {values.tolist()}".encode())
    return digest.hexdigest()


def scheduler_settings(scheduler: Any) -> dict[str, Any]:
    """What a scheduler's configuration says of its arithmetic, ready for JSON, in a fixed order."""
    # Names with an underscore say how the object was made: from a file, with defaults, by which version.
    kept = {name: value for name, value in dict(scheduler.config).items() if not name.startswith("_")}
    return dict(json.loads(json.dumps(kept, default=str, sort_keys=True)))


def _found(base: str | Path) -> Path:
    """The path itself, or the folder in the Hub's cache that the repository was downloaded to."""
    place = Path(base).expanduser()
    if place.exists():
        return place
    if isinstance(base, Path) or str(base).startswith((".", "/", "~")) or str(base).count("/") != 1:
        raise NotFoundError(f"no such base model: {base}: expected a diffusers folder, a checkpoint file or a Hub id")
    from diffusers import DiffusionPipeline

    with quiet(), translated(f"base model {base}"):
        try:
            return Path(DiffusionPipeline.download(str(base)))
        except OSError as error:  # diffusers hides what the Hub answered behind one that says that nothing is cached
            cause = error.__cause__
            raise (cause if isinstance(cause, Exception) else error) from getattr(cause, "__cause__", None)


def _settings_of(place: Path, config: str | Path | None) -> Path | None:
    """The folder with the configuration: the base itself, or what is given beside a single file."""
    if config is None:
        return None if place.is_file() else place
    if not place.is_file():
        raise UsageError(f"{place} is a folder with a configuration of its own: --base-config is for a single file")
    folder = Path(config).expanduser()
    if not folder.is_dir():
        raise NotFoundError(f"no such folder of a configuration: {config}")
    return folder


def _class_of(place: Path, settings: Path | None) -> str:
    """The name of the pipeline's class."""
    if settings is None:
        found = open_checkpoint(place).base
        if found not in _OF_FILE:
            raise UsageError(
                f"{place}: its layers are those of no base that draws here: give the diffusers folder with its "
                "configuration and tokenizer with --base-config"
            )
        return _OF_FILE[found]
    try:
        return str(json.loads((settings / "model_index.json").read_text())["_class_name"])
    except (OSError, ValueError, KeyError):
        raise FileFormatError(f"{settings} is no diffusers pipeline: it has no readable model_index.json") from None


def _pixels(settings: Path | None) -> int | None:
    """Of the pictures that the denoiser was made for, where its configuration tells."""
    try:
        (denoiser,) = (
            path for part in ("unet", "transformer") if settings and (path := settings / part / "config.json").is_file()
        )
        blocks = json.loads((denoiser.parents[1] / "vae" / "config.json").read_text())["block_out_channels"]
        return int(json.loads(denoiser.read_text())["sample_size"] * 2 ** (len(blocks) - 1)) ** 2
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _load(place: Path, kind: str, dtype: torch.dtype, settings: Path | None) -> DiffusionPipeline:
    import diffusers

    pipeline: Any = getattr(diffusers, kind)
    try:
        if place.is_file():
            given = {} if settings is None else {"config": str(settings), "local_files_only": True}
            pipe = pipeline.from_single_file(str(place), dtype=dtype, **given)
        else:
            only = {"variant": variant} if (variant := _variant(place)) else {}
            pipe = pipeline.from_pretrained(str(place), dtype=dtype, local_files_only=True, **only)
    except _ASKING as error:
        with translated(f"{place}: its configuration, which --base-config can give"):
            raise error
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        raise FileFormatError(f"{place} cannot be loaded: {str(error).splitlines()[0]}") from error
    # A false alarm of the checker, or a watermark, would be taken for an effect of the adapter.
    for part in ("safety_checker", "watermark"):
        if getattr(pipe, part, None) is not None:
            setattr(pipe, part, None)
    return pipe


def _variant(folder: Path) -> str | None:
    """The variant to ask for, where a denoiser has no plain weights."""
    for part in ("unet", "transformer"):
        names = [path.name for path in (folder / part).glob("*.safetensors")]
        if names and all(any(f".{variant}." in name for variant in _VARIANTS) for name in names):
            return next(variant for variant in _VARIANTS if f".{variant}." in names[0])
    return None


def _components(folder: Path) -> Mapping[str, int]:
    counts = {}
    for part in sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "safety_checker"):
        files = [path for path in part.iterdir() if path.suffix in (".safetensors", *PICKLE_SUFFIXES)]
        files = [path for path in files if path.suffix == ".safetensors"] or files
        plain = [path for path in files if not any(f".{word}" in path.name for word in (*_VARIANTS, "non_ema"))]
        if files:
            counts[part.name] = sum(_count(path) for path in plain or files)
    return counts


def _count(path: Path) -> int:
    """Parameters in a file of weights."""
    if path.suffix != ".safetensors":
        return path.stat().st_size // 2
    return sum(math.prod(tensor.shape) for tensor in header.read(path).tensors.values())


def _modules(pipe: DiffusionPipeline) -> list[torch.nn.Module]:
    return [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
