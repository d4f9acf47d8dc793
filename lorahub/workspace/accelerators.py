"""The known families of acceleration vectors: how to recognise one, and how to run it.

The rule: a family is recognised only when a name says so in whole words *and* the base is one it was published for; a
style called "lightning" is not SDXL-Lightning. The values are those of the publishers' cards; `extra.exclusive` says that
two of them are not to be added.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from registry.records import RunSettings

EXCLUSIVE = "accelerator"
"""Of the adapters that have this in `run.extra["exclusive"]`, at most one can be in a sum."""

Arguments = Mapping[str, Any]
_NOTHING: Arguments = MappingProxyType({})
_TRAILING: Arguments = MappingProxyType({"timestep_spacing": "trailing"})


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family. `pattern` is matched against names in lower case whose words are joined by single hyphens.

    steps: (smallest, usual, largest); with `steps_in_name` a number in the name is the one number of steps it is for.
    """

    name: str
    bases: tuple[str, ...]
    pattern: str
    scheduler: str
    steps: tuple[int, int, int]
    guidance: tuple[float, float]
    scheduler_args: Arguments = field(default_factory=dict)
    steps_in_name: bool = False
    lora_scale: float = 1.0
    extra: Arguments = field(default_factory=dict)

    def run(self, steps: int | None, more: Arguments = _NOTHING) -> RunSettings:
        """How to run a member that was made for `steps`, where its name tells."""
        low, usual, high = self.steps
        if steps is not None and self.steps_in_name:
            low, usual, high = steps, steps, steps
        return RunSettings(
            scheduler=self.scheduler,
            scheduler_args=dict(self.scheduler_args),
            steps=usual,
            steps_min=low,
            steps_max=high,
            guidance_min=self.guidance[0],
            guidance_max=self.guidance[1],
            lora_scale=self.lora_scale,
            extra={"family": self.name, "exclusive": EXCLUSIVE, **self.extra, **more},
        )


@dataclass(frozen=True)
class Recognised:
    """A family, how to run this member of it, and the name that gave it away."""

    family: str
    run: RunSettings
    evidence: str


_STABLE = ("sd15", "sdxl")
_FLOW = "FlowMatchEulerDiscreteScheduler"
_PCM_ARGS: Arguments = MappingProxyType(
    {"timestep_spacing": "trailing", "clip_sample": False, "set_alpha_to_one": False}
)

FAMILIES: tuple[Family, ...] = (
    Family(
        name="hyper-sd-unified", bases=_STABLE, pattern=r"hyper-?sd(?:-?(?:xl|15))?-1-?step(?:s)?(?:-lora)?",
        scheduler="TCDScheduler", scheduler_args={"eta": 1.0}, steps=(1, 1, 8), guidance=(0.0, 0.0),
    ),
    Family(
        name="hyper-sd-cfg", bases=_STABLE, pattern=r"hyper-?sd(?:-?(?:xl|15))?-(?:8|12)-?steps?-cfg",
        scheduler="DDIMScheduler", scheduler_args=_TRAILING, steps=(8, 8, 12), steps_in_name=True, guidance=(5.0, 8.0),
    ),
    Family(
        name="hyper-sd", bases=_STABLE, pattern=r"hyper-?sd(?:-?(?:xl|15))?(?:-\d-?steps?)?(?:-lora)?",
        scheduler="DDIMScheduler", scheduler_args=_TRAILING, steps=(2, 4, 8), steps_in_name=True, guidance=(0.0, 0.0),
    ),
    Family(
        name="hyper-sd3", bases=("sd3",), pattern=r"hyper-?sd-?3(?:-\d+-?steps?)?(?:-cfg)?(?:-lora)?",
        scheduler=_FLOW, steps=(4, 8, 16), steps_in_name=True, guidance=(3.0, 7.0), lora_scale=0.125,
    ),
    Family(
        name="hyper-flux", bases=("flux1",), pattern=r"hyper-?flux(?:-?1)?(?:-dev)?(?:-\d+-?steps?)?(?:-lora)?",
        scheduler=_FLOW, steps=(8, 8, 16), steps_in_name=True, guidance=(3.5, 3.5), lora_scale=0.125,
        extra={"embedded_guidance": True},
    ),
    Family(
        name="sdxl-lightning", bases=("sdxl",), pattern=r"sd-?xl-lightning(?:-\d+-?steps?)?(?:-lora)?",
        scheduler="EulerDiscreteScheduler", scheduler_args=_TRAILING, steps=(2, 4, 8), steps_in_name=True,
        guidance=(0.0, 0.0),
    ),
    Family(
        name="dmd2", bases=("sdxl",), pattern=r"dmd2", scheduler="LCMScheduler", steps=(4, 4, 4), guidance=(0.0, 0.0),
        extra={"timesteps": [999, 749, 499, 249], "licence": "cc-by-nc-4.0"},
    ),
    Family(
        name="pcm-normalcfg", bases=(*_STABLE, "sd3"), pattern=r"pcm-(?:sd-?15|sd-?xl|sd-?3)-normal-?cfg",
        scheduler="DDIMScheduler", scheduler_args=_PCM_ARGS, steps=(2, 4, 16), steps_in_name=True, guidance=(2.0, 9.0),
    ),
    Family(
        name="pcm-smallcfg", bases=(*_STABLE, "sd3"), pattern=r"pcm-(?:sd-?15|sd-?xl|sd-?3)-small-?cfg",
        scheduler="DDIMScheduler", scheduler_args=_PCM_ARGS, steps=(2, 4, 16), steps_in_name=True, guidance=(1.0, 2.0),
    ),
    Family(
        name="tcd", bases=("sd15", "sd2", "sdxl"), pattern=r"tcd-?lora|lora-tcd|tcd-sd(?:-?(?:xl|15|21|21-base))?-lora",
        scheduler="TCDScheduler", scheduler_args={"eta": 0.3}, steps=(2, 4, 50), guidance=(0.0, 0.0),
    ),
    Family(
        name="lcm", bases=("sd15", "ssd-1b", "sdxl"),
        pattern=r"(?:latent-consistency-)?lcm-?lora|lora-lcm|lcm-sd(?:-?xl|-?v?1-?5|-?15)?(?:-base-1-0)?-lora",
        scheduler="LCMScheduler", steps=(2, 4, 8), guidance=(1.0, 2.0), extra={"style_scale": 0.8},
    ),
    Family(
        name="sdxl-turbo", bases=("sdxl",), pattern=r"sd-?xl-turbo-lora|lora-sd-?xl-turbo",
        scheduler="LCMScheduler", steps=(1, 4, 8), guidance=(1.0, 2.5),
    ),
    Family(
        name="flux-turbo-alpha", bases=("flux1",), pattern=r"flux-?1(?:-dev)?-turbo-alpha",
        scheduler=_FLOW, steps=(8, 8, 8), guidance=(3.5, 3.5), extra={"embedded_guidance": True},
    ),
    Family(
        name="qwen-image-lightning", bases=("qwen-image",), pattern=r"qwen-image(?:-edit)?(?:-\d{4})?-lightning",
        scheduler=_FLOW, scheduler_args={"base_shift": 1.0986122886681098, "max_shift": 1.0986122886681098,
                                         "shift_terminal": None},
        steps=(4, 8, 8), steps_in_name=True, guidance=(1.0, 1.0),
    ),
    Family(
        name="wan2.2-distill", bases=("wan-14b",), pattern=r"wan-?2-?2(?:-[a-z0-9]+)*?-(?:lightning|lightx2v|distill)",
        scheduler=_FLOW, steps=(4, 4, 4), guidance=(1.0, 1.0),
    ),
    Family(
        name="wan2.1-distill", bases=("wan-14b",),
        pattern=r"wan-?2-?1(?:-[a-z0-9]+)*?-(?:step-?distill|lightx2v|cfg-?step-?distill)",
        scheduler=_FLOW, steps=(4, 4, 4), guidance=(1.0, 1.0), extra={"shift": 5.0},
    ),
)  # fmt: skip
"""Most specific first."""

_STEPS = re.compile(r"(?<![0-9])([1-9][0-9]?)-?steps?(?![a-z])")


def recognise(names: Iterable[str], base: str | None) -> Recognised | None:
    """The family that one of the names (file, title, repository) states, if it has members for this base."""
    for name in names:
        words = _joined(name)
        for family in FAMILIES:
            if base in family.bases and re.search(rf"(?<![a-z0-9])(?:{family.pattern})(?![a-z0-9])", words):
                found = _STEPS.search(words)
                run = family.run(int(found[1]) if found else None, _noise(words) if base == "wan-14b" else _NOTHING)
                return Recognised(family.name, run, f"the name {name[:200]!r} says {family.name}, published for {base}")
    return None


def _joined(name: str) -> str:
    """Words in lower case joined by hyphens: `Hyper-SDXL-8steps` and `sdxl_lightning_4step_lora` read alike."""
    return re.sub(r"[^a-z0-9]+", "-", name[:1000].lower()).strip("-")


def _noise(words: str) -> Arguments:
    """Wan 2.2 has two denoisers, and a file for each."""
    if re.search(r"(?<![a-z])high(?:-?noise)?(?![a-z])", words):
        return {"component": "transformer"}
    if re.search(r"(?<![a-z])low(?:-?noise)?(?![a-z])", words):
        return {"component": "transformer_2"}
    return _NOTHING
