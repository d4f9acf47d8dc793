"""What style + LCM does on the tiny studio, with intervals: python -m benchmarks.studio [--images 512] [--output DIR]

Every cell is drawn for the same prompts from the same noise. The distance is the Fréchet distance on the features of the
studio's scorer to 50-step pictures of the same style (with the studio's guidance, and without), and to the style as it is
drawn by formula. The 50-step pictures come from other noise: a sampler that retraces the path of the reference would seem
nearer than another sample of the same distribution. Intervals are basic bootstrap intervals (95 %, 200 rounds);
differences are resampled in pairs. Cells are kept in DIR, so an interrupted run goes on. The recipe of the vectors is that
of a study on other pictures; no style here was used to choose it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import lorahub as lh
from benchmarks.studio_report import write
from lorahub.distill.style import StyleSettings, train_style
from lorahub.studio import models, shipped, styles, world
from lorahub.studio.sampling import Sampler, sample, wearing
from lorahub.studio.scoring import Seen, bootstrap, frechet, see
from lorahub.studio.vectors import Latents

STEPS = (1, 2, 4, 8)
REFERENCES = {"50 guided": Sampler("ddim", 50, models.GUIDANCE), "50": Sampler("ddim", 50)}
BASELINES = [
    Sampler(name, steps, guidance)
    for guidance in (models.GUIDANCE, 1.0)
    for name in ("ddim", "dpm", "unipc")
    for steps in STEPS
]
SWEEP = [(first, second) for first in (0.6, 0.8, 1.0, 1.2) for second in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)]
SEED = 7


class Bench:
    """Cells drawn once and kept: (name) -> what the scorer saw."""

    def __init__(self, images: int, output: Path) -> None:
        self.scenes = world.scenes(images, SEED)
        self.prompts = self.scenes.prompts
        self.folder = output / f"cells-{images}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.pipe, self.scorer = shipped.load(), shipped.scorer()
        self.lcm = lh.load(shipped.path(shipped.LCM))
        self.styles = {style: lh.load(shipped.path(style)) for style in styles.STYLES}

    def cell(self, name: str, adapter: lh.Adapter | None, sampler: Sampler, style: str, seed: int = SEED) -> Seen:
        place = self.folder / f"{name} {sampler} {seed}.pt"
        if not place.exists():
            with self.fused(adapter):
                pictures = sample(self.pipe, self.prompts, sampler, seed=seed)
            seen = see(self.scorer, pictures, self.prompts, style)
            torch.save({"features": seen.features, "right": seen.right}, place.with_suffix(".partial"))
            place.with_suffix(".partial").replace(place)
            print(
                f"{name}, {sampler}: attributes {seen.accuracy():.3f}, style {seen.accuracy('style'):.3f}", flush=True
            )
        return Seen(**torch.load(place, weights_only=True))

    @contextmanager
    def fused(self, adapter: lh.Adapter | None) -> Iterator[None]:
        """The adapter added into the weights while the block runs: the same pictures, a third faster."""
        with wearing(self.pipe, adapter):
            if adapter is not None:
                self.pipe.fuse_lora()
            try:
                yield
            finally:
                if adapter is not None:
                    self.pipe.unfuse_lora()

    def row(
        self, name: str, adapter: lh.Adapter | None, samplers: list[Sampler], style: str, near: dict[str, Seen]
    ) -> Any:
        """The scores of one adapter under several samplers."""
        return [
            {"row": name, "sampler": str(sampler), "steps": sampler.steps, "evaluations": sampler.evaluations}
            | scores(self.cell(name, adapter, sampler, style), near)
            for sampler in samplers
        ]

    def references(self, name: str, adapter: lh.Adapter | None, style: str) -> dict[str, Seen]:
        """50 steps without guidance, the same with guidance 2, and the style as it is drawn by formula."""
        drawn = {label: self.cell(name, adapter, sampler, style, SEED + 1) for label, sampler in REFERENCES.items()}
        return drawn | {"drawn": see(self.scorer, world.draw(self.scenes, style), self.prompts, style)}


def scores(seen: Seen, near: dict[str, Seen]) -> dict[str, Any]:
    shares = {
        name: asdict(bootstrap(lambda index, name=name: seen.chosen(index).accuracy(name), len(seen)))  # type: ignore[misc]
        for name in ("all", "shape", "colour", "ground", "style")
    }
    distances = {f"distance to {label}": asdict(distance(seen, other)) for label, other in near.items()}
    return shares | distances


def distance(seen: Seen, other: Seen) -> Any:
    return bootstrap(lambda index: frechet(seen.features[index], other.features), len(seen))


def differences(bench: Bench, style: str, near: dict[str, Seen]) -> list[dict[str, Any]]:
    """Distance of base + style under each other sampler less that of style + LCM with as many steps, resampled in pairs."""
    found = []
    for steps in STEPS:
        ours = bench.cell(f"{style} + LCM", bench.styles[style] + bench.lcm, Sampler("lcm", steps), style)
        for sampler in (baseline for baseline in BASELINES if baseline.steps == steps):
            theirs = bench.cell(style, bench.styles[style], sampler, style)
            for label, other in near.items():
                gain = bootstrap(_gain(ours, theirs, other), len(ours))
                found.append({"to": label, "steps": steps, "against": str(sampler), **asdict(gain)})
    return found


def _gain(ours: Seen, theirs: Seen, near: Seen) -> Callable[[torch.Tensor], float]:
    def gain(index: torch.Tensor) -> float:
        return frechet(theirs.features[index], near.features) - frechet(ours.features[index], near.features)

    return gain


def measure_style(bench: Bench, style: str) -> dict[str, Any]:
    adapter = bench.styles[style]
    near = bench.references(style, adapter, style)
    few = [Sampler("lcm", steps) for steps in STEPS]
    rows = bench.row(f"{style} + LCM", adapter + bench.lcm, few, style, near)
    rows += bench.row(f"0.8 {style} + LCM", 0.8 * adapter + bench.lcm, few, style, near)
    rows += bench.row(style, adapter, BASELINES, style, near)
    rows += bench.row(style, adapter, few, style, near)  # the sampler alone, without the vector
    rows += bench.row(style, adapter, list(REFERENCES.values()), style, near)
    return {"rows": rows, "differences": differences(bench, style, near)}


def sweep(bench: Bench, style: str) -> list[dict[str, Any]]:
    near = {"50 guided": bench.cell(style, bench.styles[style], REFERENCES["50 guided"], style, SEED + 1)}
    found = []
    for first, second in SWEEP:
        adapter = first * bench.styles[style] + second * bench.lcm
        seen = bench.cell(f"{first:g} {style} + {second:g} LCM", adapter, Sampler("lcm", 2), style)
        found.append({"of": style, "lambda1": first, "lambda2": second, **scores(seen, near)})
    return found


def truncated(bench: Bench, style: str) -> list[dict[str, Any]]:
    near = {"50 guided": bench.cell(style, bench.styles[style], REFERENCES["50 guided"], style, SEED + 1)}
    whole, found = bench.styles[style] + bench.lcm, []
    for rank in (24, 12, 8, 4):
        adapter = whole if rank == 24 else lh.truncate(whole, lh.fixed(rank))
        lost = float(adapter.relative_error) if isinstance(adapter, lh.Truncated) else 0.0
        for steps in (2, 4):
            name = f"{style} + LCM" if rank == 24 else f"{style} + LCM at rank {rank}"
            seen = bench.cell(name, adapter, Sampler("lcm", steps), style)
            found.append({"of": style, "rank": rank, "steps": steps, "left out": lost, **scores(seen, near)})
    return found


def variant(bench: Bench) -> list[dict[str, Any]]:
    """The vector made for the base, on the base after fine-tuning all of its U-Net to other colours."""
    source = Latents(bench.pipe, palette=world.SHIFTED, batch=16, seed=3)
    settings = StyleSettings(
        train="model", steps=400, learning_rate=5e-4, decay="cosine", warmup=0.1, batch_size=16, seed=3
    )
    own, place = bench.pipe.unet, bench.folder / "variant"
    if not place.exists():
        train_style(bench.pipe, source, settings).unet.save_pretrained(place)
    bench.pipe.unet = type(own).from_pretrained(place).eval()
    try:
        name = "variant"
        near = bench.references(name, None, styles.PLAIN)
        del near["drawn"]  # in other colours
        few = [Sampler(name, steps, models.GUIDANCE) for name in ("ddim", "dpm", "unipc") for steps in STEPS]
        rows = bench.row(name, None, [*few, *REFERENCES.values()], styles.PLAIN, near)
        return rows + bench.row(
            f"{name} + LCM", bench.lcm, [Sampler("lcm", steps) for steps in STEPS], styles.PLAIN, near
        )
    finally:
        bench.pipe.unet = own


def base(bench: Bench) -> list[dict[str, Any]]:
    near = bench.references("base", None, styles.PLAIN)
    few = [Sampler("lcm", steps) for steps in STEPS]
    rows = bench.row("base + LCM", bench.lcm, few, styles.PLAIN, near)
    return rows + bench.row("base", None, [*BASELINES, *few, *REFERENCES.values()], styles.PLAIN, near)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--output", type=Path, default=Path("studio-benchmark"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(asked.images, asked.output)
    result: dict[str, Any] = {"images": asked.images, "base": base(bench), "styles": {}}
    for style in styles.STYLES:
        result["styles"][style] = measure_style(bench, style)
        write(result, asked.output)
    result["variant"] = variant(bench)
    result["sweep"] = [row for style in ("shadow", "stripes") for row in sweep(bench, style)]
    result["truncated"] = [row for style in ("shadow", "stripes") for row in truncated(bench, style)]
    write(result, asked.output)


if __name__ == "__main__":
    main()
