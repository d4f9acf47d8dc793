"""The settings of a distillation, and how a TOML file with `key=value` overrides is read. Needs no torch."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorahub.distill.checked import Checked, among, setting, within
from lorahub.errors import FileFormatError, NotFoundError, UsageError

TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"),
)
"""The modules of a U-Net that LCM-LoRA adapts: attention, feed-forward, convolutions and time projections."""

MODES = ("lora", "full", "lcf", "cd", "guided", "tcd")

SURROUNDINGS = frozenset(
    {
        *("base", "output", "name", "force", "log", "checkpoint_every", "keep_checkpoints"),
        *("sample_every", "sample_prompts", "sample_steps"),
    }
)
"""Settings that say where a run is and what it leaves beside the vector; no weight depends on them."""


@dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """How to distil. Symbols are those of arXiv 2310.04378, algorithm 1. Raises UsageError naming the wrong key."""

    mode: str = setting("lora", among(MODES, "what is learnt: see `lorahub distill --help`"))
    base: str = setting("", "folder or Hub repository of the base pipeline")
    output: str = setting("", "file of the vector; beside it, OUTPUT-run holds checkpoints, samples and logs")
    name: str = setting("", "name to register the vector under; empty: not registered")
    dtype: str = setting("fp16", among(("fp32", "fp16", "bf16"), "precision of the saved file"))
    force: bool = setting(False, "overwrite the output")

    train: str = setting("", among(("", "adapter", "model"), "train a LoRA or a whole copy; empty: as the mode does"))
    rank: int = setting(64, within(1, 4096, "rank of the vector"))
    alpha: float = setting(0.0, within(0, 1e6, "alpha while training; 0: the rank, which is scale 1"))
    targets: tuple[str, ...] = setting(TARGETS, "ends of the names of the modules to adapt")
    embed_guidance: bool = setting(False, "condition a whole model on w, as the LCM paper does")

    solver: str = setting("ddim", among(("ddim", "dpmsolver++"), "the teacher's ODE solver"))
    solver_steps: int = setting(50, within(1, 1000, "N, timesteps of the solver's grid; k = T / N are skipped"))
    w_min: float = setting(3.0, within(0, 1000, "smallest guidance w; the usual scale is w + 1"))
    w_max: float = setting(15.0, within(0, 1000, "largest guidance w"))
    unconditional: str = setting(
        "auto", among(("auto", "zeros", "empty"), "u of the guidance: zero embeddings or the prompt ''")
    )
    drop_prompts: float = setting(0.0, within(0, 1, "share of prompts replaced by the unconditional embedding"))
    sigma_data: float = setting(0.5, within(1e-6, 1e6, "σ_data of c_skip and c_out"))
    timestep_scaling: float = setting(10.0, within(1e-6, 1e6, "factor of t in c_skip and c_out"))

    loss: str = setting("huber", among(("huber", "l2"), "distance d of two estimates"))
    huber_c: float = setting(0.001, within(1e-9, 1e6, "c of the pseudo-Huber distance"))
    min_snr: float = setting(0.0, within(0, 1e6, "γ of the min-SNR weights; 0: none"))
    target: str = setting("ema", among(("ema", "student"), "θ⁻: a moving average (paper) or the student (scripts)"))
    ema_decay: float = setting(0.95, within(0, 1, "μ of the moving average"))
    keep: str = setting("target", among(("target", "student"), "whether θ⁻ or θ is the result"))

    steps: int = setting(1000, within(1, 10**9, "optimiser steps"))
    batch_size: int = setting(16, within(1, 10**6, "samples a process takes at once"))
    accumulation: int = setting(1, within(1, 10**6, "batches whose gradients make one step"))
    learning_rate: float = setting(1e-4, within(0, 10, "peak learning rate"))
    decay: str = setting("constant", among(("constant", "linear", "cosine"), "of the learning rate after warm-up"))
    warmup: float = setting(0.0, within(0, 1, "share of the steps over which the learning rate rises"))
    optimizer: str = setting("adamw", among(("adamw", "adamw8bit"), "adamw8bit needs bitsandbytes"))
    weight_decay: float = setting(0.0, within(0, 10, "of AdamW"))
    clip: float = setting(1.0, within(0, 1e9, "largest norm of the gradient; 0: no limit"))
    seed: int = setting(0, within(0, 2**63 - 1, "of weights, noise, timesteps and data"))
    precision: str = setting("no", among(("no", "fp16", "bf16"), "mixed precision of the forward passes"))
    gradient_checkpointing: bool = setting(False, "recompute activations: less memory, about a third slower")

    checkpoint_every: int = setting(500, within(0, 10**9, "steps between checkpoints; 0: none"))
    keep_checkpoints: int = setting(2, within(1, 10**6, "newest checkpoints to keep"))
    sample_every: int = setting(0, within(0, 10**9, "steps between sample grids; 0: none"))
    sample_prompts: tuple[str, ...] = setting((), "prompts of the sample grids, one a row")
    sample_steps: tuple[int, ...] = setting((1, 2, 4, 8), within(1, 1000, "numbers of steps, one a column"))
    log: str = setting("", among(("", "tensorboard"), "where loss and learning rate are logged"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.w_min > self.w_max:
            raise UsageError(f"w_min ({self.w_min:g}) is above w_max ({self.w_max:g})")
        if self.mode == "guided" and self.train == "adapter":
            raise UsageError("train: guided conditions the model on w, which a LoRA cannot hold; use train = 'model'")
        if self.embed_guidance and not self.whole:
            raise UsageError(
                "embed_guidance: a LoRA cannot hold the embedding of w; use train = 'model' or mode = 'full'"
            )
        if self.sample_every and not self.sample_prompts:
            raise UsageError("sample_every: there is nothing to draw; give sample_prompts")
        if self.name and not self.output:
            raise UsageError("name: only a file can be registered; give an output")
        if not self.targets:
            raise UsageError("targets: expected at least one module, such as to_q")

    @property
    def whole(self) -> bool:
        """Whether a copy of the whole U-Net is trained, rather than a LoRA."""
        return self.train == "model" or (self.train == "" and self.mode in ("full", "guided"))

    def training(self) -> dict[str, Any]:
        """The settings that the result depends on, as JSON-ready values."""
        values = {name: value for name, value in asdict(self).items() if name not in SURROUNDINGS}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @property
    def run_folder(self) -> Path | None:
        """Where checkpoints, samples and logs go; None when the run has no output."""
        if not self.output:
            return None
        output = Path(self.output)
        return output.with_name(f"{output.stem}-run")


def table(path: Path | None, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The table of a TOML file (of none: an empty one) with `key=value` overrides put in; `data.folder=x` reaches deeper.

    A value is read as TOML where it can be, else as text. Raises NotFoundError, FileFormatError, UsageError.
    """
    found = {} if path is None else _read(path)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"expected key=value, got {override!r}")
        *parents, last = key.strip().split(".")
        place = found
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise UsageError(f"{key}: {parent} is no table")
        place[last] = _value(text)
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFoundError(f"no such file: {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path} is no TOML: {error}") from None


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
