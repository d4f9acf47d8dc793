"""Ordinary LoRA fine-tuning on pictures: the same loop as distillation, in which the network learns what it always does.

The rule: a style differs from a distillation by its settings and by the two tensors whose distance is the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from lorahub.distill import consistency
from lorahub.distill.algorithm import MODES, Distillation, Draw
from lorahub.distill.checked import among, refuse_unknown, setting, within
from lorahub.distill.conditioning import Conditioning, Source
from lorahub.distill.settings import TARGETS, Settings
from lorahub.distill.solver import Schedule
from lorahub.distill.trainer import Distilled, Progress, distill
from lorahub.errors import UsageError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from lorahub.workspace.core import Workspace

MODE = "style"

NAMED_TARGETS = {"attention": ("to_q", "to_k", "to_v", "to_out.0"), "all": TARGETS}
"""What `targets` may say instead of a list."""

_DISTILLING = frozenset(
    {
        *("mode", "train", "embed_guidance", "solver", "solver_steps", "w_min", "w_max", "sigma_data"),
        *("timestep_scaling", "target", "keep", "sample_every", "sample_prompts", "sample_steps"),
    }
)
"""Settings of distillation that mean nothing for a style, or follow from others."""


@dataclass(frozen=True, kw_only=True)
class StyleSettings(Settings):
    """How to train a style. Raises UsageError naming the wrong key."""

    mode: str = setting(MODE, among((MODE,), "ordinary training"))
    rank: int = setting(16, within(1, 4096, "rank of the vector"))
    targets: tuple[str, ...] = setting(
        NAMED_TARGETS["attention"],
        "ends of the names of the modules to adapt, or attention, or all that LCM-LoRA adapts",
    )
    drop_prompts: float = setting(0.1, within(0, 1, "share of prompts replaced by the unconditional embedding"))
    loss: str = setting("l2", among(("huber", "l2"), "distance of what the network predicts from what is there"))
    ema_decay: float = setting(0.0, within(0, 1, "of the moving average that is kept; 0: the last weights are kept"))
    batch_size: int = setting(4, within(1, 10**6, "samples a process takes at once"))
    trigger_words: tuple[str, ...] = setting((), "words that call the style, for the registry")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "target", "ema" if self.ema_decay else "student")

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Self:
        """The settings that a table holds. Raises UsageError for a key that is none, with the nearest one that is."""
        refuse_unknown(table, [entry.name for entry in fields(cls) if entry.name not in _DISTILLING])
        named = table.get("targets")
        if not isinstance(named, str):
            return cls(**table)
        if named not in NAMED_TARGETS:
            raise UsageError(f"targets: expected a list of modules, {' or '.join(NAMED_TARGETS)}, got {named!r}")
        return cls(**{**table, "targets": NAMED_TARGETS[named]})


def train_style(
    pipeline: DiffusionPipeline,
    source: Source,
    settings: StyleSettings,
    *,
    progress: Progress | None = None,
    resume: bool = False,
) -> Distilled:
    """Train a LoRA on the pipeline's U-Net by its own objective, on the batches `source.at(0)`, `source.at(1)`, ...

    The loss is the mean squared error of the predicted noise (or v, or x_0, as the scheduler says) at timesteps drawn
    evenly (arXiv 2006.11239, equation 14), with `min_snr` weighted as in arXiv 2303.09556. Everything else is as
    `distill` does it: the base is left as it was, and the saved file has been loaded back and compared.
    Raises what `distill` raises.
    """
    steps = len(Schedule.of(pipeline.scheduler).alphas)
    return distill(pipeline, source, replace(settings, solver_steps=steps), progress=progress, resume=resume)


def register(workspace: Workspace, made: Distilled, name: str) -> str:
    """Register the file of a run as the next version of `name`, a style with its trigger words; its reference.

    Raises UsageError when the run wrote no file, and what adding a file raises.
    """
    from lorahub.workspace.adding import add

    if made.saved is None:
        raise UsageError(f"nothing to register as {name}: the run wrote no file")
    words = getattr(made.settings, "trigger_words", ())
    with workspace.transaction():
        (added,) = add(workspace, [made.saved.path], name=name, kind=MODE).added
        if words:
            workspace.registry.edit(added.reference, trigger_words=list(words))
    return added.reference


def _denoising(
    run: Distillation, x: Tensor, z: Tensor, c: Conditioning, u: Conditioning, draw: Draw
) -> tuple[Tensor, Tensor]:
    """What the network predicts of x, and what it should: both as x_0 where min-SNR weighs errors of x_0."""
    kind = run.schedule.prediction_type
    alpha, sigma = run.schedule.at(draw.t)
    output = run.student(x, draw.t, c, None)
    if run.settings.min_snr:
        return consistency.predicted_x_0(output, x, alpha, sigma, kind), z
    return output, {"epsilon": draw.epsilon, "v_prediction": alpha * draw.epsilon - sigma * z, "sample": z}[kind]


MODES[MODE] = _denoising
