"""Make the studio's weights from nothing: autoencoder, scorer, base, acceleration vector, style vectors.

The rule: each stage is a function of the plan and of what the stages before it wrote. A result appears only when it is
complete and checkpoints lie in `OUTPUT/build` until all is done, so an interrupted build goes on where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from lorahub.errors import ConflictError
from lorahub.files.store import replacing
from lorahub.quiet import quiet
from lorahub.studio import models, shipped, styles, training, vectors
from lorahub.studio.fitting import Schedule

Progress = Callable[[str, int, int, float], None]
"""(stage, steps done, steps in all, mean loss lately)"""


@dataclass(frozen=True)
class Plan:
    """How long each stage trains; `pictures` are drawn for the base, a quarter as many for each vector."""

    vae: Schedule = field(default_factory=lambda: Schedule(3000, 3e-3, ema=0.99))
    scorer: Schedule = field(default_factory=lambda: Schedule(1500, 3e-3, ema=0.99))
    base: Schedule = field(default_factory=lambda: Schedule(18_000, 2e-3, ema=0.998))
    lcm_steps: int = 1200
    style_steps: int = 700
    styles: tuple[str, ...] = tuple(styles.STYLES)
    pictures: int = 30_000
    seed: int = 1


def build(output: Path, plan: Plan | None = None, *, resume: bool = False, progress: Progress | None = None) -> Path:
    """Train all parts and write them to `output` as `shipped` describes; the folder that holds them.

    Raises ConflictError when there is something at `output` and it is not to be resumed, or a build that is resumed has
    other settings, and VerificationError when a loss is not finite.
    """
    if output.exists() and not resume:
        raise ConflictError(f"{output} exists already: continue that build with --resume, or choose another folder")
    run = _Build(output, plan or Plan(), progress)
    run.work.mkdir(parents=True, exist_ok=True)
    run.pipeline()
    run.scorer()
    run.vectors()
    shutil.rmtree(run.work)
    return output


@dataclass(frozen=True)
class _Build:
    output: Path
    plan: Plan
    progress: Progress | None

    @property
    def work(self) -> Path:
        return self.output / "build"

    def report(self, stage: str) -> Callable[[int, int, float], None]:
        def told(done: int, steps: int, loss: float) -> None:
            if self.progress is not None:
                self.progress(stage, done, steps, loss)

        return told

    def how(self, stage: str) -> dict[str, Any]:
        return {"checkpoint": self.work / f"{stage}.pt", "seed": self.plan.seed, "report": self.report(stage)}

    def pipeline(self) -> None:
        """Trained in float32, kept in half precision: the vectors are then trained for the weights that ship."""
        plan, place = self.plan, self.output / "pipeline"
        if place.exists():
            return
        vae = training.train_vae(plan.vae, **self.how("autoencoder"))
        text_encoder, unet = training.train_base(vae, plan.base, pictures=plan.pictures, **self.how("base"))
        pipe = models.assemble(vae.half(), text_encoder, unet.half())
        with quiet(), replacing(place, force=False) as temporary:
            pipe.save_pretrained(temporary)

    def scorer(self) -> None:
        place = self.output / "scorer.safetensors"
        if place.exists():
            return
        scorer = training.train_scorer(self.plan.scorer, **self.how("scorer"))
        with replacing(place, force=False) as temporary:
            save_file({name: value.half() for name, value in scorer.state_dict().items()}, temporary)

    def vectors(self) -> None:
        plan, folder = self.plan, self.output / "vectors"
        folder.mkdir(exist_ok=True)
        pipe = shipped.load(self.output)
        how = {"pictures": max(1, plan.pictures // 4), "seed": plan.seed}
        for name in (shipped.LCM, *plan.styles):
            place = folder / f"{name}.safetensors"
            if place.exists():
                continue
            trained = self.work / place.name
            if name == shipped.LCM:
                vectors.train_lcm(pipe, trained, steps=plan.lcm_steps, progress=self.report(name), **how)
            else:
                vectors.train_style(pipe, name, trained, steps=plan.style_steps, progress=self.report(name), **how)
            trained.rename(place)
