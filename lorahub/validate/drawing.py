"""Draw cells, a picture a file. A picture's name is the hash of everything that determines it, and its text says it all.

The rule: a file that has its name was drawn whole, from these very settings; so a run that was interrupted goes on, and
one whose settings changed draws anew. The noise of a picture comes from its seed alone, on the CPU.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from lorahub.algebra.adapter import Adapter
from lorahub.errors import UsageError
from lorahub.files.store import replacing
from lorahub.pipeline import attach, detach
from lorahub.quiet import quiet
from lorahub.validate.cells import Cell, Picture, Plan
from lorahub.validate.fitting import Fit
from lorahub.validate.pipelines import fingerprint, place, scheduler_settings, unplace
from lorahub.validate.samplers import call_arguments, scheduler

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Progress = Callable[[int, int], None]
"""(pictures done, pictures in all)"""

_ATTACHED = "lorahub-validate"
_TEXT = "lorahub"
"""Keyword of the PNG text that holds the settings of a picture, as JSON."""


@dataclass
class Session:
    """A pipeline, the adapters by the names that cells use, and the folder that pictures go to.

    resume: take pictures that are there already. Raises UsageError for a negative prompt that the pipeline cannot heed.
    """

    pipe: DiffusionPipeline
    plan: Plan
    adapters: Mapping[str, Adapter]
    folder: Path
    fit: Fit
    resume: bool = True
    _base: str = field(init=False)
    _hashes: Mapping[str, str] = field(init=False)
    _placed: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        if self.plan.negative and not self._negative:
            raise UsageError(f"{type(self.pipe).__name__} takes no negative prompt")
        self._base = fingerprint(self.pipe)
        self._hashes = {name: identity(adapter) for name, adapter in self.adapters.items()}
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def _negative(self) -> bool:
        return type(self.pipe).__name__ != "FluxPipeline"

    def draw(self, cells: Sequence[Cell], progress: Progress | None = None) -> tuple[Picture, ...]:
        """The pictures of the cells, in their order; the pipeline is left without adapters and with its own scheduler.

        Raises what `attach` raises for adapters that do not fit, UsageError for samplers that do not.
        """
        asked = [(prompt, seed) for prompt in self.plan.prompts for seed in self.plan.seeds]
        total, done, drawn = len(cells) * len(asked), 0, []
        for cell in cells:
            with self._sampling(cell):
                places = [(prompt, seed, self._settings(cell, prompt, seed)) for prompt, seed in asked]
            found = [self._found(cell, *each) for each in places]
            missing = [each for each, picture in zip(places, found, strict=True) if picture is None]
            kept = {(p.prompt, p.seed): p for p in found if p is not None}
            done += len(kept)
            if missing:
                with self._wearing(cell), self._sampling(cell):
                    for start in range(0, len(missing), self.fit.batch):
                        for picture in self._batch(cell, missing[start : start + self.fit.batch]):
                            kept[picture.prompt, picture.seed] = picture
                            done += 1
                            if progress is not None:
                                progress(done, total)
            drawn += [kept[each] for each in asked]
        return tuple(drawn)

    def _batch(self, cell: Cell, part: Sequence[tuple[str, int, Mapping[str, Any]]]) -> Iterator[Picture]:
        prompts = [prompt for prompt, _, _ in part]
        arguments: dict[str, Any] = {"prompt": prompts, "guidance_scale": cell.guidance, "output_type": "np"}
        arguments["generator"] = [torch.Generator().manual_seed(seed) for _, seed, _ in part]
        arguments |= self._steps(cell) | call_arguments(self.plan.acceleration, cell.sampler)
        for name in ("height", "width"):
            if getattr(self.plan, name) is not None:
                arguments[name] = getattr(self.plan, name)
        if self.plan.negative:
            arguments["negative_prompt"] = [self.plan.negative] * len(part)
        started = time.perf_counter()
        with torch.no_grad():
            images = self.pipe(**arguments).images
        seconds = (time.perf_counter() - started) / len(part)
        for (prompt, seed, settings), image in zip(part, images, strict=True):
            path = self._path(settings)
            write_picture(path, image, settings, seconds)
            yield Picture(cell, prompt, seed, path, seconds, bool(np.isfinite(image).all()))

    def _steps(self, cell: Cell) -> dict[str, Any]:
        fast = self.plan.acceleration
        if fast is not None and cell.sampler == fast.scheduler and len(fast.timesteps) == cell.steps:
            return {"num_inference_steps": cell.steps, "timesteps": list(fast.timesteps)}
        return {"num_inference_steps": cell.steps}

    def _settings(self, cell: Cell, prompt: str, seed: int) -> Mapping[str, Any]:
        """Everything that determines a picture; asked while the pipeline has the cell's scheduler."""
        sampler = self.pipe.scheduler
        return {
            "base": self._base,
            "pipeline": type(self.pipe).__name__,
            "adapters": {self._hashes[name]: weight for name, weight in cell.coefficients if weight},
            "scheduler": [type(sampler).__name__, scheduler_settings(sampler)],
            **self._steps(cell),
            **call_arguments(self.plan.acceleration, cell.sampler),
            "guidance": cell.guidance,
            "prompt": prompt,
            "negative": self.plan.negative,
            "seed": seed,
            "size": [self.plan.height, self.plan.width],
            "dtype": self.fit.dtype,
            "device": self.fit.device.partition(":")[0],
            "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "peft")},
        }

    def _path(self, settings: Mapping[str, Any]) -> Path:
        text = json.dumps(settings, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.png"

    def _found(self, cell: Cell, prompt: str, seed: int, settings: Mapping[str, Any]) -> Picture | None:
        path = self._path(settings)
        if not self.resume or not path.is_file():
            return None
        try:
            kept = read_settings(path)
        except (OSError, SyntaxError, KeyError, ValueError):  # a power cut can leave a name without its bytes
            return None
        return Picture(cell, prompt, seed, path, float(kept["seconds"]), bool(kept["finite"]))

    @contextmanager
    def _sampling(self, cell: Cell) -> Iterator[None]:
        before = self.pipe.scheduler
        self.pipe.scheduler = scheduler(self.pipe, cell.sampler, self.plan.acceleration)
        bar = getattr(self.pipe, "_progress_bar_config", None)
        self.pipe.set_progress_bar_config(disable=True)
        try:
            with quiet():
                yield
        finally:
            self.pipe.scheduler = before
            if bar is None:
                del self.pipe._progress_bar_config
            else:
                self.pipe._progress_bar_config = bar

    @contextmanager
    def _wearing(self, cell: Cell) -> Iterator[None]:
        """The pipeline, placed, with the cell's sum of adapters on."""
        parts = [weight * self.adapters[name] for name, weight in cell.coefficients if weight]
        if parts:
            if self._placed:
                unplace(self.pipe, self.fit)
            attach(self.pipe, sum(parts[1:], start=parts[0]), name=_ATTACHED)
            self._placed = False
        if not self._placed:
            place(self.pipe, self.fit)
            self._placed = True
        try:
            yield
        finally:
            if parts:
                unplace(self.pipe, self.fit)
                detach(self.pipe, _ATTACHED)
                self._placed = self.fit.offload == "none"


def identity(adapter: Adapter) -> str:
    """sha256 over the layers' names and factors, scales included."""
    digest = hashlib.sha256()
    for name, layer in sorted(adapter.layers.items()):
        up, down = layer.factors()
        for factor in (up, down):
            digest.update(f"{name} {tuple(factor.shape)} {factor.dtype}".encode())
            digest.update(factor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_picture(path: Path, image: np.ndarray[Any, Any], settings: Mapping[str, Any], seconds: float) -> None:
    """Write a PNG whole or not at all. image: height x width x 3 in [0, 1]; what is not finite becomes black."""
    finite = bool(np.isfinite(image).all())
    text = PngImagePlugin.PngInfo()
    text.add_text(_TEXT, json.dumps({**settings, "seconds": seconds, "finite": finite}, sort_keys=True))
    values = (np.nan_to_num(image, nan=0.0, posinf=0.0, neginf=0.0).clip(0, 1) * 255).round().astype(np.uint8)
    with replacing(path, force=True) as temporary:
        Image.fromarray(values).save(temporary, format="PNG", pnginfo=text)


def read_settings(path: Path) -> dict[str, Any]:
    """What a picture was drawn with, and what it took, from its PNG text."""
    with Image.open(path) as image:
        return dict(json.loads(image.text[_TEXT]))  # type: ignore[attr-defined]


def read_pictures(pictures: Sequence[Picture]) -> torch.Tensor:
    """N x 3 x height x width, float32 in [0, 1]."""
    arrays = []
    for picture in pictures:
        with Image.open(picture.path) as image:
            arrays.append(np.asarray(image.convert("RGB")))
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def default_guidance(pipe: DiffusionPipeline) -> float:
    """The guidance scale that the pipeline's own call defaults to."""
    return float(inspect.signature(type(pipe).__call__).parameters["guidance_scale"].default)
